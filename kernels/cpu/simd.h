// A float vector of the instruction set this file is compiled for. Everything has internal linkage (see kernels.h).
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define PLLM_INLINE static inline __attribute__((always_inline))
#define PLLM_UNROLL _Pragma("GCC unroll 32")

namespace pllm {
namespace PLLM_ISA {

#if defined(__AVX512F__)

typedef __m512 vf;
constexpr int kLanes = 16;
PLLM_INLINE vf zero() { return _mm512_setzero_ps(); }
PLLM_INLINE vf set1(float a) { return _mm512_set1_ps(a); }
PLLM_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
PLLM_INLINE void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
PLLM_INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
PLLM_INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
PLLM_INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
PLLM_INLINE vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
PLLM_INLINE vf max(vf a, vf b) { return _mm512_max_ps(a, b); }  // b where either is NaN
PLLM_INLINE vf min(vf a, vf b) { return _mm512_min_ps(a, b); }  // b where either is NaN
PLLM_INLINE vf fmadd(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
PLLM_INLINE vf round_even(vf a) { return _mm512_roundscale_ps(a, 0); }
PLLM_INLINE __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
PLLM_INLINE vf load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
PLLM_INLINE void store_first(float* p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a); }
PLLM_INLINE vf keep_first(vf a, int64_t n, vf other) { return _mm512_mask_blend_ps(first(n), other, a); }
PLLM_INLINE vf zero_below(vf a, vf x, vf limit) {  // a, or 0 where x < limit
  return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), _mm512_setzero_ps());
}
PLLM_INLINE vf zero_where(vf a, vf x, vf y) {  // a, or 0 where x == y
  return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ), _mm512_setzero_ps());
}
PLLM_INLINE vf times_power_of_two(vf a, vf n) { return _mm512_scalef_ps(a, n); }
PLLM_INLINE bool any_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
PLLM_INLINE uint32_t mask_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
PLLM_INLINE uint32_t mask_at_least(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
// kLanes consecutive values in bfloat16.
PLLM_INLINE vf load(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
// kLanes words of an interleaved line: the low halves and the high halves.
PLLM_INLINE void load_pair(const uint16_t* p, vf* low, vf* high) {
  const __m512i w = _mm512_loadu_si512(p);
  *low = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
  *high = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000)));
}
// 2 * kLanes consecutive values, in whatever order is cheapest: here the even ones, then the odd ones.
PLLM_INLINE void load_two(const uint16_t* p, vf* a, vf* b) { load_pair(p, a, b); }
PLLM_INLINE float reduce_add(vf a) { return _mm512_reduce_add_ps(a); }
PLLM_INLINE float reduce_max(vf a) { return _mm512_reduce_max_ps(a); }
// Lane i of the result is the sum over the lanes of a[i].
PLLM_INLINE vf sum_each(const vf a[kLanes]) {
  vf b[8], c[4];
  PLLM_UNROLL for (int i = 0; i < 8; i++)
    b[i] = add(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
  PLLM_UNROLL for (int i = 0; i < 4; i++) {
    const __m512d l = _mm512_castps_pd(b[2 * i]), h = _mm512_castps_pd(b[2 * i + 1]);
    c[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)), _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
  }
  // c[i]: in each 128-bit part, partial sums of a[4i..4i+3]
  const vf d0 = add(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
  const vf d1 = add(_mm512_shuffle_f32x4(c[2], c[3], 0x88), _mm512_shuffle_f32x4(c[2], c[3], 0xdd));
  return add(_mm512_shuffle_f32x4(d0, d1, 0x88), _mm512_shuffle_f32x4(d0, d1, 0xdd));
}
// a[i][j] <-> a[j][i]
PLLM_INLINE void transpose(vf a[kLanes]) {
  vf b[16];
  PLLM_UNROLL for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  PLLM_UNROLL for (int i = 0; i < 16; i += 4) PLLM_UNROLL for (int j = 0; j < 2; j++) {
    const __m512d l = _mm512_castps_pd(b[i + j]), h = _mm512_castps_pd(b[i + j + 2]);
    a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(l, h));
    a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(l, h));
  }
  PLLM_UNROLL for (int j = 0; j < 4; j++) {
    const vf c0 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88), c1 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    const vf c2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88), c3 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    b[j] = _mm512_shuffle_f32x4(c0, c2, 0x88);
    b[4 + j] = _mm512_shuffle_f32x4(c1, c3, 0x88);
    b[8 + j] = _mm512_shuffle_f32x4(c0, c2, 0xdd);
    b[12 + j] = _mm512_shuffle_f32x4(c1, c3, 0xdd);
  }
  PLLM_UNROLL for (int i = 0; i < 16; i++) a[i] = b[i];
}

#else

typedef __m256 vf;
constexpr int kLanes = 8;
PLLM_INLINE vf zero() { return _mm256_setzero_ps(); }
PLLM_INLINE vf set1(float a) { return _mm256_set1_ps(a); }
PLLM_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
PLLM_INLINE void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
PLLM_INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
PLLM_INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
PLLM_INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
PLLM_INLINE vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
PLLM_INLINE vf max(vf a, vf b) { return _mm256_max_ps(a, b); }
PLLM_INLINE vf min(vf a, vf b) { return _mm256_min_ps(a, b); }
PLLM_INLINE vf fmadd(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
PLLM_INLINE vf round_even(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
PLLM_INLINE __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= 8 ? 8 : n <= 0 ? 0 : (int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
PLLM_INLINE vf load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
PLLM_INLINE void store_first(float* p, vf a, int64_t n) { _mm256_maskstore_ps(p, first(n), a); }
PLLM_INLINE vf keep_first(vf a, int64_t n, vf other) { return _mm256_blendv_ps(other, a, _mm256_castsi256_ps(first(n))); }
PLLM_INLINE vf zero_below(vf a, vf x, vf limit) { return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), a); }
PLLM_INLINE vf zero_where(vf a, vf x, vf y) { return _mm256_andnot_ps(_mm256_cmp_ps(x, y, _CMP_EQ_OQ), a); }
PLLM_INLINE vf times_power_of_two(vf a, vf n) {
  return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
PLLM_INLINE bool any_nan(vf a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0; }
PLLM_INLINE uint32_t mask_equal(vf a, vf b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
PLLM_INLINE uint32_t mask_at_least(vf a, vf b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
PLLM_INLINE vf load(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
PLLM_INLINE void load_pair(const uint16_t* p, vf* low, vf* high) {
  const __m256i w = _mm256_loadu_si256((const __m256i*)p);
  *low = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
  *high = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000)));
}
PLLM_INLINE void load_two(const uint16_t* p, vf* a, vf* b) { load_pair(p, a, b); }
PLLM_INLINE float reduce_add(vf a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
PLLM_INLINE float reduce_max(vf a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
PLLM_INLINE vf sum_each(const vf a[kLanes]) {
  const vf b0 = _mm256_hadd_ps(a[0], a[1]), b1 = _mm256_hadd_ps(a[2], a[3]);
  const vf b2 = _mm256_hadd_ps(a[4], a[5]), b3 = _mm256_hadd_ps(a[6], a[7]);
  const vf c0 = _mm256_hadd_ps(b0, b1), c1 = _mm256_hadd_ps(b2, b3);
  return add(_mm256_permute2f128_ps(c0, c1, 0x20), _mm256_permute2f128_ps(c0, c1, 0x31));
}
PLLM_INLINE void transpose(vf a[kLanes]) {
  vf b[8];
  PLLM_UNROLL for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  PLLM_UNROLL for (int i = 0; i < 8; i += 4) PLLM_UNROLL for (int j = 0; j < 2; j++) {
    a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
    a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
  }
  PLLM_UNROLL for (int j = 0; j < 4; j++) {
    b[j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x20);
    b[4 + j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x31);
  }
  PLLM_UNROLL for (int i = 0; i < 8; i++) a[i] = b[i];
}

#endif

PLLM_INLINE void load_two(const float* p, vf* a, vf* b) {
  *a = load(p);
  *b = load(p + kLanes);
}
// Where load_two puts element i of its 2 * kLanes.
PLLM_INLINE int64_t place_of(const uint16_t*, int64_t i) { return i / 2 + i % 2 * kLanes; }
PLLM_INLINE int64_t place_of(const float*, int64_t i) { return i; }

// kLanes floats of a float32 line and the kLanes sixteen columns further on.
PLLM_INLINE void load_pair(const float* p, vf* low, vf* high) {
  *low = load(p);
  *high = load(p + 16);
}

// e^x for x <= 88, within 2 ulp; 0 below -87.3 (no denormals); NaN stays NaN. Cephes expf (Moshier).
PLLM_INLINE vf exp(vf x) {
  const vf lowest = set1(-87.3f);
  const vf c = max(lowest, min(set1(88.0f), x));  // max and min return the second operand when it is NaN
  const vf n = round_even(mul(c, set1(1.44269504088896341f)));
  vf r = fmadd(n, set1(-0.693359375f), c);
  r = fmadd(n, set1(2.12194440e-4f), r);
  vf p = set1(1.9875691500e-4f);
  p = fmadd(p, r, set1(1.3981999507e-3f));
  p = fmadd(p, r, set1(8.3334519073e-3f));
  p = fmadd(p, r, set1(4.1665795894e-2f));
  p = fmadd(p, r, set1(1.6666665459e-1f));
  p = fmadd(p, r, set1(5.0000001201e-1f));
  p = add(fmadd(p, mul(r, r), r), set1(1.0f));
  return zero_below(times_power_of_two(p, n), x, lowest);
}

// silu(gate) * up
PLLM_INLINE vf silu_mul(vf gate, vf up) { return mul(div(gate, add(set1(1.0f), exp(sub(zero(), gate)))), up); }

// tanh by the rational function of Eigen's ptanh: a few ulp; NaN stays NaN.
PLLM_INLINE vf tanh(vf x) {
  const vf c = max(set1(-7.90531110763549805f), min(set1(7.90531110763549805f), x));
  const vf s = mul(c, c);
  vf p = set1(-2.76076847742355e-16f);
  p = fmadd(p, s, set1(2.00018790482477e-13f));
  p = fmadd(p, s, set1(-8.60467152213735e-11f));
  p = fmadd(p, s, set1(5.12229709037114e-08f));
  p = fmadd(p, s, set1(1.48572235717979e-05f));
  p = fmadd(p, s, set1(6.37261928875436e-04f));
  p = fmadd(p, s, set1(4.89352455891786e-03f));
  p = mul(p, c);
  vf q = set1(1.19825839466702e-06f);
  q = fmadd(q, s, set1(1.18534705686654e-04f));
  q = fmadd(q, s, set1(2.26843463243900e-03f));
  q = fmadd(q, s, set1(4.89352518554385e-03f));
  return div(p, q);
}

// C[R][32] (+)= A[R][k] B[k][32]: the one product everything dense is made of. A is read by broadcast at a[i*AK + r*AR].
// B has 32 values a line: float32, or bfloat16 interleaved (packing.py). One accumulator per output runs over k in order,
// whatever R: so a row's result does not depend on how many rows are computed beside it.
// G of the 16/kLanes column groups are computed: group g holds columns g*kLanes.. and 16+g*kLanes...
template <int R, int G, int AK, int AR, int PREFETCH, class T>
PLLM_INLINE void multiply(const float* a, const T* b, int64_t k, vf acc[R][2 * G], const char*& ahead, int64_t ahead_step) {
  int64_t i = 0;
#define PLLM_STEP(o)                                                                       \
  {                                                                                        \
    vf w[2 * G];                                                                           \
    PLLM_UNROLL for (int g = 0; g < G; g++)                                                \
        load_pair(b + (o) * 32 + g * kLanes * (4 / (int)sizeof(T)), &w[2 * g], &w[2 * g + 1]); \
    PLLM_UNROLL for (int r = 0; r < R; r++) {                                              \
      const vf x = set1(a[(o) * AK + r * AR]);                                             \
      PLLM_UNROLL for (int c = 0; c < 2 * G; c++) acc[r][c] = fmadd(x, w[c], acc[r][c]);   \
    }                                                                                      \
  }
  for (; i + 4 <= k; i += 4, a += 4 * AK, b += 4 * 32) {
    if (PREFETCH == 1) {  // this panel, further on
      PLLM_UNROLL for (int o = 0; o < 4 * 32 * (int)sizeof(T); o += 64)
        _mm_prefetch((const char*)b + ahead_step + o, _MM_HINT_T0);
    } else if (PREFETCH == 2) {  // the next panel, a little at a time
      for (int64_t o = 0; o < ahead_step; o += 64) _mm_prefetch(ahead + o, _MM_HINT_T0);
      ahead += ahead_step;
    }
    PLLM_STEP(0) PLLM_STEP(1) PLLM_STEP(2) PLLM_STEP(3)
  }
  for (; i < k; i++, a += AK, b += 32) PLLM_STEP(0)
#undef PLLM_STEP
}

}  // namespace PLLM_ISA
}  // namespace pllm
