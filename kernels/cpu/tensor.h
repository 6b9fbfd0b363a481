// Torch's tensors as its C interface gives them to an operator, read and checked.
//
// Torch's functions are weak references. So the library also loads where there is no torch (the sampler, the tests), and its
// operators still work for a caller that has pointers. A program's library is loaded after torch, and finds them.
#pragma once

#include <string.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "api.h"
#include "kernels.h"

#pragma weak aoti_torch_device_type_cpu
#pragma weak aoti_torch_delete_tensor_object
#pragma weak aoti_torch_dtype_bfloat16
#pragma weak aoti_torch_dtype_float32
#pragma weak aoti_torch_dtype_int32
#pragma weak aoti_torch_dtype_int64
#pragma weak aoti_torch_dtype_int8
#pragma weak aoti_torch_dtype_uint8
#pragma weak aoti_torch_empty_strided
#pragma weak aoti_torch_get_data_ptr
#pragma weak aoti_torch_get_dim
#pragma weak aoti_torch_get_dtype
#pragma weak aoti_torch_get_sizes
#pragma weak aoti_torch_get_strides

namespace {

using pllm::fail;

constexpr AOTITorchError kFailed = 1;

struct Tensor {
  void* data = nullptr;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  int64_t dim = 0;
  int32_t dtype = 0;

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dim; i++) n *= sizes[i];
    return n;
  }
  // Of the last `count` dimensions; 1 element or none has no strides that matter.
  bool contiguous(int64_t count) const {
    int64_t expected = 1;
    for (int64_t i = dim - 1; i >= dim - count; i--) {
      if (sizes[i] != 1 && strides[i] != expected) return numel() == 0;
      expected *= sizes[i];
    }
    return true;
  }
};

inline bool torch_is_there() {
  if (&aoti_torch_empty_strided) return true;
  fail(PLLM_INVALID_ARGUMENT, "the operator library was loaded before torch's libtorch_cpu.so: load that one first");
  return false;
}

// False, with the reason, where the tensor is not as the operator needs it. `dtype` below 0: any.
inline bool read(AtenTensorHandle handle, const char* name, int64_t dim, int32_t dtype, Tensor* t) {
  if (!handle || aoti_torch_get_dim(handle, &t->dim) || aoti_torch_get_dtype(handle, &t->dtype) ||
      aoti_torch_get_sizes(handle, &t->sizes) || aoti_torch_get_strides(handle, &t->strides) ||
      aoti_torch_get_data_ptr(handle, &t->data)) {
    fail(PLLM_INVALID_ARGUMENT, "%s is no tensor that can be read", name);
    return false;
  }
  if (dim >= 0 && t->dim != dim) {
    fail(PLLM_INVALID_ARGUMENT, "%s has %lld dimensions, not %lld", name, (long long)t->dim, (long long)dim);
    return false;
  }
  if (dtype >= 0 && t->dtype != dtype) {
    fail(PLLM_INVALID_ARGUMENT, "%s has torch's dtype %d, not %d", name, t->dtype, dtype);
    return false;
  }
  return true;
}

inline bool read_contiguous(AtenTensorHandle handle, const char* name, int64_t dim, int32_t dtype, Tensor* t) {
  if (!read(handle, name, dim, dtype, t)) return false;
  if (t->contiguous(t->dim)) return true;
  fail(PLLM_INVALID_ARGUMENT, "%s is not contiguous", name);
  return false;
}

inline bool read_optional(AtenTensorHandle* handle, const char* name, int64_t size, Tensor* t) {
  if (!handle || !*handle) return true;
  if (!read_contiguous(*handle, name, 1, aoti_torch_dtype_float32(), t)) return false;
  if (t->sizes[0] == size) return true;
  fail(PLLM_INVALID_ARGUMENT, "%s has %lld elements, not %lld", name, (long long)t->sizes[0], (long long)size);
  return false;
}

constexpr int64_t kMaxDim = 8;

// The leading dimensions as one: how far apart the rows of [..., K] are. False where they are not evenly apart.
inline bool collapse(const Tensor& t, int64_t* rows, int64_t* row_stride) {
  if (t.dim < 1 || t.dim > kMaxDim) {
    fail(PLLM_INVALID_ARGUMENT, "x has %lld dimensions, not 1 to %lld", (long long)t.dim, (long long)kMaxDim);
    return false;
  }
  const int64_t k = t.sizes[t.dim - 1];
  *rows = 1;
  *row_stride = k;
  bool even = k <= 1 || t.strides[t.dim - 1] == 1;
  for (int64_t i = t.dim - 2; i >= 0; i--) {
    if (t.sizes[i] == 1) continue;
    if (*rows == 1) *row_stride = t.strides[i];
    else if (t.strides[i] != *row_stride * *rows) even = false;
    *rows *= t.sizes[i];
  }
  if (even || *rows == 0) return true;
  fail(PLLM_INVALID_ARGUMENT, "the rows of x are not evenly apart, or not contiguous");
  return false;
}

// A new contiguous float32 tensor.
inline AOTITorchError make(const int64_t* sizes, int64_t dim, AtenTensorHandle* ret, float** data) {
  int64_t strides[kMaxDim];
  int64_t stride = 1;
  for (int64_t i = dim - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  void* memory = nullptr;
  if (aoti_torch_empty_strided(dim, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, ret)) {
    fail(PLLM_OUT_OF_MEMORY, "no memory left for an operator's output");
    return kFailed;
  }
  if (aoti_torch_get_data_ptr(*ret, &memory)) {
    fail(PLLM_OUT_OF_MEMORY, "an operator's output has no data");
    return kFailed;
  }
  *data = (float*)memory;
  return AOTI_TORCH_SUCCESS;
}

// What the operator came to. A tensor that was made for nothing is given back.
inline AOTITorchError finish(int code, AtenTensorHandle* ret) {
  if (!code) return AOTI_TORCH_SUCCESS;
  aoti_torch_delete_tensor_object(*ret);
  *ret = nullptr;
  return kFailed;
}

}  // namespace
