// Torch's tensors, as far as a compiled program uses them: memory, its sizes and strides. The functions are those of torch's
// stable C interface (torch/csrc/inductor/aoti_torch/c/shim.h) with torch's names and meanings, so that a program that calls
// nothing else of torch needs no torch where it runs: 100 MB and a tenth of a second less (DECISIONS.md).
//
// Linked into such a program under torch's names, hidden, and into the operator library under ours (PLLM_TENSORS_PREFIX): in a
// process that has torch too they are never mixed up with its own. A tensor begins with a word that no tensor of torch's
// begins with, so that the operators can tell them apart (tensor.h).
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <new>

#include "memory.h"
#include "torch_tensors.h"

#define PLLM_JOIN_(a, b) a##b
#define PLLM_JOIN(a, b) PLLM_JOIN_(a, b)
#ifdef PLLM_TENSORS_PREFIX
#define NAMED(name) PLLM_JOIN(PLLM_TENSORS_PREFIX, name)
#pragma GCC visibility push(default)  // for whoever gives a program its arguments
#else
#define NAMED(name) PLLM_JOIN(aoti_torch_, name)
#endif

namespace {

constexpr int32_t kOk = 0, kFailed = 1;
constexpr int64_t kMostDims = 16;

// As c10/core/ScalarType.h counts them.
enum Dtype : int32_t { kUint8 = 0, kInt8, kInt16, kInt32, kInt64, kFloat16, kFloat32, kFloat64, kBool = 11, kBfloat16 = 15 };

int64_t size_of(int32_t dtype) {
  switch (dtype) {
    case kUint8:
    case kInt8:
    case kBool: return 1;
    case kInt16:
    case kFloat16:
    case kBfloat16: return 2;
    case kInt32:
    case kFloat32: return 4;
    case kInt64:
    case kFloat64: return 8;
    default: return 0;
  }
}

struct Storage {
  std::atomic<int64_t> users;
  char* memory;
  int64_t bytes;
  size_t taken, taken_itself;  // of memory, none where it is another's; and of this struct
};

struct Tensor {
  uint64_t mark;
  size_t taken;
  Storage* storage;
  int64_t offset, dim;  // in elements
  int32_t dtype;
  int64_t sizes[kMostDims], strides[kMostDims];

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dim; i++) n *= sizes[i];
    return n;
  }
  char* data() const { return storage->memory && numel() ? storage->memory + offset * size_of(dtype) : nullptr; }
};

// Bytes of a storage from its beginning to a tensor's last element; to its offset where it has none; -1 for more than can be.
int64_t bytes_of(int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype) {
  int64_t last = offset, step, bytes;
  bool over = false;
  for (int64_t i = 0; i < dim; i++) {
    if (sizes[i] == 0) return offset * size_of(dtype);
    over |= __builtin_mul_overflow(sizes[i] - 1, strides[i], &step) || __builtin_add_overflow(last, step, &last);
  }
  over |= last == INT64_MAX || __builtin_mul_overflow(last + 1, size_of(dtype), &bytes);
  return over ? -1 : bytes;
}

int32_t no_memory(int64_t bytes) {
  fprintf(stderr, "no memory for a tensor of %" PRId64 " bytes\n", bytes);
  return kFailed;
}

void release(Storage* storage) {
  if (storage->users.fetch_sub(1) != 1) return;
  if (storage->taken) pllm_give_memory(storage->memory, storage->taken);
  pllm_give_memory(storage, storage->taken_itself);
}

Storage* store(char* memory, int64_t bytes, size_t taken) {
  size_t taken_itself;
  Storage* storage = (Storage*)pllm_take_memory(sizeof(Storage), &taken_itself);
  if (!storage) return nullptr;
  new (&storage->users) std::atomic<int64_t>(1);
  storage->memory = memory, storage->bytes = bytes, storage->taken = taken, storage->taken_itself = taken_itself;
  return storage;
}

// Takes over one use of the storage, also where it fails.
int32_t make(Storage* storage, int64_t offset, int32_t dtype, int64_t dim, const int64_t* sizes, const int64_t* strides, Tensor** out) {
  size_t taken = 0;
  Tensor* t = dim >= 0 && dim <= kMostDims && size_of(dtype) ? (Tensor*)pllm_take_memory(sizeof(Tensor), &taken) : nullptr;
  if (!t) return release(storage), kFailed;
  t->taken = taken, t->mark = PLLM_TENSOR_MARK, t->storage = storage, t->offset = offset, t->dtype = dtype, t->dim = dim;
  for (int64_t i = 0; i < dim; i++) t->sizes[i] = sizes[i], t->strides[i] = strides[i];
  *out = t;
  return kOk;
}

}  // namespace

extern "C" {

int32_t NAMED(device_type_cpu)() { return 0; }
int32_t NAMED(device_type_cuda)() { return 1; }
int32_t NAMED(layout_strided)() { return 0; }
int32_t NAMED(dtype_uint8)() { return kUint8; }
int32_t NAMED(dtype_int8)() { return kInt8; }
int32_t NAMED(dtype_int16)() { return kInt16; }
int32_t NAMED(dtype_int32)() { return kInt32; }
int32_t NAMED(dtype_int64)() { return kInt64; }
int32_t NAMED(dtype_float16)() { return kFloat16; }
int32_t NAMED(dtype_float32)() { return kFloat32; }
int32_t NAMED(dtype_float64)() { return kFloat64; }
int32_t NAMED(dtype_bool)() { return kBool; }
int32_t NAMED(dtype_bfloat16)() { return kBfloat16; }

int32_t NAMED(empty_strided)(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device_type,
                                 int32_t, Tensor** out) {
  if (device_type != 0) return kFailed;
  const int64_t bytes = bytes_of(dim, sizes, strides, 0, dtype);
  size_t taken = 0;
  char* memory = bytes > 0 ? (char*)pllm_take_memory((size_t)bytes, &taken) : nullptr;
  if (bytes && !memory) return no_memory(bytes);
  Storage* storage = store(memory, bytes, taken);
  if (!storage) return pllm_give_memory(memory, taken), kFailed;
  return make(storage, 0, dtype, dim, sizes, strides, out);
}

int32_t NAMED(create_tensor_from_blob)(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t offset,
                                           int32_t dtype, int32_t device_type, int32_t, Tensor** out) {
  if (device_type != 0) return kFailed;
  const int64_t bytes = bytes_of(dim, sizes, strides, offset, dtype);
  Storage* storage = bytes < 0 ? nullptr : store((char*)data, bytes, 0);
  return storage ? make(storage, offset, dtype, dim, sizes, strides, out) : kFailed;
}
int32_t NAMED(create_tensor_from_blob_v2)(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t offset,
                                              int32_t dtype, int32_t device_type, int32_t device_index, Tensor** out, int32_t layout,
                                              const uint8_t*, int64_t) {
  if (layout != NAMED(layout_strided)()) return kFailed;
  return NAMED(create_tensor_from_blob)(data, dim, sizes, strides, offset, dtype, device_type, device_index, out);
}

int32_t NAMED(_reinterpret_tensor)(Tensor* self, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t further,
                                       Tensor** out) {
  self->storage->users.fetch_add(1);
  return make(self->storage, self->offset + further, self->dtype, dim, sizes, strides, out);
}
int32_t NAMED(new_tensor_handle)(Tensor* self, Tensor** out) {
  return NAMED(_reinterpret_tensor)(self, self->dim, self->sizes, self->strides, 0, out);
}
int32_t NAMED(clone)(Tensor* self, Tensor** out) {
  if (bytes_of(self->dim, self->sizes, self->strides, 0, self->dtype) != self->numel() * size_of(self->dtype)) return kFailed;  // gaps
  if (NAMED(empty_strided)(self->dim, self->sizes, self->strides, self->dtype, 0, 0, out)) return kFailed;
  const int64_t bytes = (*out)->storage->bytes;
  if (bytes) memcpy((*out)->data(), self->data(), (size_t)bytes);
  return kOk;
}
int32_t NAMED(delete_tensor_object)(Tensor* self) {
  release(self->storage);
  pllm_give_memory(self, self->taken);
  return kOk;
}

int32_t NAMED(get_data_ptr)(Tensor* self, void** out) { return *out = self->data(), kOk; }
int32_t NAMED(get_storage_size)(Tensor* self, int64_t* out) { return *out = self->storage->bytes, kOk; }
int32_t NAMED(get_storage_offset)(Tensor* self, int64_t* out) { return *out = self->offset, kOk; }
int32_t NAMED(get_dim)(Tensor* self, int64_t* out) { return *out = self->dim, kOk; }
int32_t NAMED(get_numel)(Tensor* self, int64_t* out) { return *out = self->numel(), kOk; }
int32_t NAMED(get_dtype)(Tensor* self, int32_t* out) { return *out = self->dtype, kOk; }
int32_t NAMED(get_sizes)(Tensor* self, int64_t** out) { return *out = self->sizes, kOk; }
int32_t NAMED(get_strides)(Tensor* self, int64_t** out) { return *out = self->strides, kOk; }
int32_t NAMED(get_device_type)(Tensor*, int32_t* out) { return *out = 0, kOk; }
int32_t NAMED(get_device_index)(Tensor*, int32_t* out) { return *out = -1, kOk; }

}  // extern "C"
