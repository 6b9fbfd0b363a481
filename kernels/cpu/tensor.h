// Torch's tensors as its C interface gives them to an operator, read and checked.
//
// They are torch's own, or those of torch_tensors.cpp, as the program is that calls; an operator's results are of its arguments' kind.
// Torch's functions are looked up when the first of its tensors comes: the library loads, and mostly lives, without torch.
#pragma once

#include <dlfcn.h>
#include <string.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "api.h"
#include "kernels.h"
#include "torch_tensors.h"

extern "C" {
AOTITorchError pllm_tensors_delete_tensor_object(AtenTensorHandle);
AOTITorchError pllm_tensors_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, AtenTensorHandle*);
AOTITorchError pllm_tensors_get_data_ptr(AtenTensorHandle, void**);
AOTITorchError pllm_tensors_get_dim(AtenTensorHandle, int64_t*);
AOTITorchError pllm_tensors_get_dtype(AtenTensorHandle, int32_t*);
AOTITorchError pllm_tensors_get_sizes(AtenTensorHandle, int64_t**);
AOTITorchError pllm_tensors_get_strides(AtenTensorHandle, int64_t**);
int32_t pllm_tensors_device_type_cpu();
int32_t pllm_tensors_dtype_bfloat16();
int32_t pllm_tensors_dtype_float32();
int32_t pllm_tensors_dtype_int32();
int32_t pllm_tensors_dtype_int64();
int32_t pllm_tensors_dtype_int8();
int32_t pllm_tensors_dtype_uint8();
}

namespace {

using pllm::fail;

constexpr AOTITorchError kFailed = 1;

// What can be done with a tensor of a kind.
struct TensorFunctions {
  decltype(&aoti_torch_delete_tensor_object) delete_tensor_object;
  decltype(&aoti_torch_empty_strided) empty_strided;
  decltype(&aoti_torch_get_data_ptr) get_data_ptr;
  decltype(&aoti_torch_get_dim) get_dim;
  decltype(&aoti_torch_get_dtype) get_dtype;
  decltype(&aoti_torch_get_sizes) get_sizes;
  decltype(&aoti_torch_get_strides) get_strides;
};

inline TensorFunctions functions_of_torch() {
  TensorFunctions f;
#define PLLM_FIND(name) f.name = (decltype(f.name))dlsym(RTLD_DEFAULT, "aoti_torch_" #name)
  PLLM_FIND(delete_tensor_object);
  PLLM_FIND(empty_strided);
  PLLM_FIND(get_data_ptr);
  PLLM_FIND(get_dim);
  PLLM_FIND(get_dtype);
  PLLM_FIND(get_sizes);
  PLLM_FIND(get_strides);
#undef PLLM_FIND
  const bool all = f.delete_tensor_object && f.empty_strided && f.get_data_ptr && f.get_dim && f.get_dtype && f.get_sizes && f.get_strides;
  return all ? f : TensorFunctions{};
}

// By the tensor's first word.
inline const TensorFunctions& functions_of(AtenTensorHandle handle) {
  static constexpr TensorFunctions ours = {
      pllm_tensors_delete_tensor_object, pllm_tensors_empty_strided, pllm_tensors_get_data_ptr, pllm_tensors_get_dim,
      pllm_tensors_get_dtype,            pllm_tensors_get_sizes,     pllm_tensors_get_strides};
  uint64_t first;
  memcpy(&first, (const void*)handle, sizeof first);
  if (first == PLLM_TENSOR_MARK) return ours;
  static const TensorFunctions torchs = functions_of_torch();
  return torchs;
}

struct Tensor {
  const TensorFunctions* functions = nullptr;
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

// False, with the reason, where the tensor is not as the operator needs it. `dtype` below 0: any.
inline bool read(AtenTensorHandle handle, const char* name, int64_t dim, int32_t dtype, Tensor* t) {
  const TensorFunctions* f = handle ? &functions_of(handle) : nullptr;
  t->functions = f;
  if (f && !f->get_dim) {
    fail(PLLM_INVALID_ARGUMENT, "%s is torch's, and libtorch_cpu.so was not loaded for all libraries", name);
    return false;
  }
  if (!f || f->get_dim(handle, &t->dim) || f->get_dtype(handle, &t->dtype) || f->get_sizes(handle, &t->sizes) ||
      f->get_strides(handle, &t->strides) || f->get_data_ptr(handle, &t->data)) {
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
  if (!read_contiguous(*handle, name, 1, pllm_tensors_dtype_float32(), t)) return false;
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

// A new contiguous float32 tensor, of the same kind as another.
inline AOTITorchError make(const Tensor& like, const int64_t* sizes, int64_t dim, AtenTensorHandle* ret, float** data) {
  int64_t strides[kMaxDim];
  int64_t stride = 1;
  for (int64_t i = dim - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  void* memory = nullptr;
  if (like.functions->empty_strided(dim, sizes, strides, pllm_tensors_dtype_float32(), pllm_tensors_device_type_cpu(), 0, ret)) {
    fail(PLLM_OUT_OF_MEMORY, "no memory left for an operator's output");
    return kFailed;
  }
  if (like.functions->get_data_ptr(*ret, &memory)) {
    fail(PLLM_OUT_OF_MEMORY, "an operator's output has no data");
    return kFailed;
  }
  *data = (float*)memory;
  return AOTI_TORCH_SUCCESS;
}

// What the operator came to. A tensor that was made for nothing is given back.
inline AOTITorchError finish(int code, AtenTensorHandle* ret) {
  if (!code) return AOTI_TORCH_SUCCESS;
  functions_of(*ret).delete_tensor_object(*ret);
  *ret = nullptr;
  return kFailed;
}

}  // namespace
