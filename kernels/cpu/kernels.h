// What an instruction set must provide, and what it may use. All files but team, dispatch and shim are compiled once per
// instruction set, each time inside another namespace (PLLM_ISA); dispatch.cpp checks arguments and picks one.
//
// Those files use no templates of the standard library: a template instantiated there has weak linkage, the linker would keep
// one copy for all, and the AVX-512 copy could end up running on a CPU without AVX-512.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "team.h"

namespace pllm {

// Memory of the calling thread that only ever grows; null when there is none left. One buffer per slot.
enum ScratchSlot { kScratchInput, kScratchWorkers, kScratchItems, kScratchPartials, kScratchSlots };
void* scratch(ScratchSlot slot, size_t bytes);

// As pllm_set_tiling was told.
struct Tiling {
  int streamed, blocked, rows;
};
const Tiling& tiling();
static inline int64_t scaled(int64_t size, int powers) { return powers < 0 ? size >> -powers : size << powers; }

// Notes what pllm_last_error() says in this thread, and returns the code.
__attribute__((format(printf, 2, 3))) int fail(int code, const char* format, ...);

// Arguments are checked before these are called; they fail only for want of memory, returning PLLM_OUT_OF_MEMORY.
struct Kernels {
  int (*linear)(const float* x, int64_t m, int64_t x_stride, const void* weight, int weight_dtype, int64_t n, int64_t k,
                const float* bias, float* y, int64_t y_stride);
  void (*embedding)(const int64_t* ids, int64_t tokens, const void* weight, int weight_dtype, int64_t n, int64_t k,
                    float* y, int64_t y_stride);
  int (*quantized_linear)(const float* x, int64_t m, int64_t x_stride, const uint8_t* weight, const void* scale,
                          int64_t groups, int64_t n, int64_t k, const float* bias, bool gated, float* y, int64_t y_stride);
  void (*quantized_embedding)(const int64_t* ids, int64_t tokens, const uint8_t* weight, const float* scale, int64_t k,
                              float* y, int64_t y_stride);
  int (*paged_attention)(const PllmPagedAttention& a);
  void (*rms_normalize)(const PllmRmsNorm& a);
  void (*silu_mul)(const float* x, int64_t rows, int64_t x_stride, int64_t n, float* out);
  void (*norm_rope)(const PllmNormRope& a);
  void (*argmax)(const float* logits, int64_t rows, int64_t vocab, int64_t stride, int64_t* ids, float* maxima,
                 int32_t* status);
  void (*logsumexp)(const float* logits, int64_t rows, int64_t vocab, int64_t stride, double* out);
  int (*sample_rows)(const float* logits, int64_t rows, int64_t vocab, int64_t stride, const float* temperature,
                     const int32_t* top_k, const float* top_p, const float* min_p, const double* uniform, int64_t* ids,
                     int32_t* status);
};

#define PLLM_DECLARE_KERNELS(isa)                                                                                         \
  namespace isa {                                                                                                         \
  int linear(const float*, int64_t, int64_t, const void*, int, int64_t, int64_t, const float*, float*, int64_t);          \
  void embedding(const int64_t*, int64_t, const void*, int, int64_t, int64_t, float*, int64_t);                           \
  int quantized_linear(const float*, int64_t, int64_t, const uint8_t*, const void*, int64_t, int64_t, int64_t,            \
                       const float*, bool, float*, int64_t);                                                              \
  void quantized_embedding(const int64_t*, int64_t, const uint8_t*, const float*, int64_t, float*, int64_t);              \
  int paged_attention(const PllmPagedAttention&);                                                                         \
  void rms_normalize(const PllmRmsNorm&);                                                                                 \
  void silu_mul(const float*, int64_t, int64_t, int64_t, float*);                                                         \
  void norm_rope(const PllmNormRope&);                                                                                    \
  void argmax(const float*, int64_t, int64_t, int64_t, int64_t*, float*, int32_t*);                                       \
  void logsumexp(const float*, int64_t, int64_t, int64_t, double*);                                                       \
  int sample_rows(const float*, int64_t, int64_t, int64_t, const float*, const int32_t*, const float*, const float*,      \
                  const double*, int64_t*, int32_t*);                                                                     \
  }
PLLM_DECLARE_KERNELS(avx2)
PLLM_DECLARE_KERNELS(avx512)
#undef PLLM_DECLARE_KERNELS

}  // namespace pllm
