"""What several kernels share: products, e4m3 by its bits, tanh.

e4m3 (sign, 4 bits of exponent with a bias of 7, 3 of mantissa; no infinity; largest 448) is native to sm_89 and later.
For older devices, and for the interpreter, the pool is passed as bytes (uint8) and the bits are worked out here: the
kernels are the same.
"""

import triton
from triton import language as tl

__all__ = ["INTERPRETED", "LARGEST_E4M3", "narrow", "product", "tanh", "widen"]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether TRITON_INTERPRET=1 was set when triton was imported."""

LARGEST_E4M3 = tl.constexpr(448.0)


@triton.jit
def product(a, b):
    """a @ b, summed in float32; float32 operands stay float32 (no tf32)."""
    if INTERPRETED:  # its product of bfloat16 multiplies the bits
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def tanh(x):
    """By exp alone: no library function, which the interpreter lacks. Absolute error below 1e-6 in float32."""
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def widen(x, like):
    """Elements of the cache as the dtype of `like`, exact. uint8 is e4m3; its NaN is not kept (480 comes out)."""
    if x.dtype == tl.uint8:
        # e4m3's fields are float16's with a bias that is 8 less: shift them into place, and multiply by 2^8.
        bits = x.to(tl.uint16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        return (half.to(tl.float32) * 256.0).to(like.dtype)
    else:
        return x.to(like.dtype)


@triton.jit
def narrow(x, cache):
    """float32 values as the cache stores them, rounded to nearest even; e4m3 saturates at 448.

    cache: the pointer that they will be stored through.
    """
    element = cache.dtype.element_ty
    if element == tl.uint8:
        magnitude = tl.minimum(tl.abs(x), LARGEST_E4M3)
        # From 2^-6: keep 3 of 23 bits of mantissa, ties to even; the carry may move the exponent, as it should.
        bits = magnitude.to(tl.uint32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below: a multiple of 2^-9, which adding 2^14 rounds to and leaves in the lowest bits.
        small = (magnitude + 16384.0).to(tl.uint32, bitcast=True) & 0xF
        code = tl.where(magnitude < 0.015625, small, normal)
        sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
        return tl.where(x != x, 0x7F, code | sign).to(tl.uint8)
    elif element == tl.float8e4nv:
        return tl.minimum(tl.maximum(x, -LARGEST_E4M3), LARGEST_E4M3).to(element)
    else:
        return x.to(element)
