// The C interface of the operator library. No torch type appears here: tensors are pointers, sizes and strides in elements.
// Every function returns 0, or a non-zero code; pllm_last_error() then says why, for the calling thread.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define PLLM_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { PLLM_ABI_VERSION = 7 };
enum { PLLM_OK = 0, PLLM_INVALID_ARGUMENT = 1, PLLM_OUT_OF_MEMORY = 2, PLLM_UNSUPPORTED_CPU = 3 };
enum { PLLM_FLOAT32 = 0, PLLM_BFLOAT16 = 1, PLLM_INT8 = 2 };  // int8: a cache only
enum { PLLM_MAX_HEAD_DIM = 512 };
enum { PLLM_ROW_OK = 0, PLLM_ROW_NOT_FINITE = 1 };  // a row's own status in argmax and sampling

PLLM_EXPORT int pllm_abi_version(void);
PLLM_EXPORT const char* pllm_last_error(void);

// Chooses the instruction set (PLLM_CPU_ISA=avx2|avx512, else the best this CPU has) and writes its name to isa_out.
// Called by itself on first use; call it to see the error early.
PLLM_EXPORT int pllm_init(char* isa_out, size_t size);
PLLM_EXPORT const char* pllm_cpu_isa(void);  // "" when no supported instruction set was found
PLLM_EXPORT int pllm_set_num_threads(int threads);
PLLM_EXPORT int pllm_num_threads(void);

// How much of a product is done at a time, in powers of two from what it is by default, -4 to 4: of weights in a piece that few
// rows are multiplied with, in one that many are, and of rows that a piece's weights are multiplied with in turn. No result depends
// on it. For the whole process, and before steps run; programs use the first library that was loaded, and what that was told.
PLLM_EXPORT int pllm_set_tiling(int streamed, int blocked, int rows);

// y[M,N] = x[M,K] W^T + bias, float32 arithmetic; W packed as kernels/packing.py: pack_linear.
PLLM_EXPORT int pllm_linear(const float* x, int64_t m, int64_t x_stride, const void* weight, int weight_dtype, int64_t n,
                            int64_t k, const float* bias, float* y, int64_t y_stride);

// y[T,K] = rows ids[T] of a packed weight of N rows.
PLLM_EXPORT int pllm_embedding(const int64_t* ids, int64_t tokens, const void* weight, int weight_dtype, int64_t n,
                               int64_t k, float* y, int64_t y_stride);

// The same with whole-number weights, activations rounded to int8 a row at a time, and whole-number sums; W packed as
// kernels/quantization.py does. groups 0: int8 with a float32 scale for each of N outputs, at most 65,536 inputs. Else int4, in so
// many groups of inputs, each of a multiple of 8, with bfloat16 scales [ceil(N/32)][groups][32].
// gated: the N outputs, a multiple of 32, are 16 of a gate and 16 of its up in turns, and y[M,N/2] = silu(gate) * up.
PLLM_EXPORT int pllm_quantized_linear(const float* x, int64_t m, int64_t x_stride, const uint8_t* weight, const void* scale,
                                      int64_t groups, int64_t n, int64_t k, const float* bias, int gated, float* y,
                                      int64_t y_stride);
// Rows of an int8 weight.
PLLM_EXPORT int pllm_quantized_embedding(const int64_t* ids, int64_t tokens, const uint8_t* weight, const float* scale,
                                         int64_t n, int64_t k, float* y, int64_t y_stride);

// One step of attention over the paged cache: writes this step's keys and values, then attends.
typedef struct {
  const float* q;  // [tokens, heads, head_dim]
  const float* k;  // [tokens, kv_heads, head_dim]
  const float* v;  // [tokens, kv_heads, head_dim]
  int64_t q_strides[3], k_strides[3], v_strides[3];  // token, head, element; the last must be 1
  void* kv;        // [num_blocks, num_layers, 2, kv_heads, block_size, head_dim], contiguous; int8: [.., block_size, head_dim + 4],
                   // the last two dimensions being block_size rows of head_dim, then block_size floats, their scales
  const int32_t* block_table;  // [sequences, table_width], contiguous
  const int32_t* query_start;  // [sequences + 1]
  const int32_t* context_len;  // [sequences]: tokens in the cache after this step
  const float* sinks;          // [heads] or null
  float* out;                  // [tokens, heads, head_dim], contiguous
  int64_t tokens, heads, kv_heads, head_dim, sequences, table_width, num_blocks, num_layers, block_size, layer;
  int64_t sliding_window;      // 0: none; else a query at p sees the keys in (p - window, p]
  int32_t kv_dtype;
  float scale, softcap;        // softcap 0: none
} PllmPagedAttention;
PLLM_EXPORT int pllm_paged_attention(const PllmPagedAttention* a);

// Rows over their root mean square, times weight + weight_offset; of x + residual, where there is one, and then that sum too.
typedef struct {
  const float* x;         // [rows, n]
  const float* residual;  // [rows, n] or null
  const float* weight;    // [n]
  float* out;             // [rows, n], contiguous
  float* total;           // the same, for the sum; null without residual
  int64_t rows, n, x_stride, residual_stride;
  float eps, weight_offset;
} PllmRmsNorm;
PLLM_EXPORT int pllm_rms_normalize(const PllmRmsNorm* a);

// silu(gate) * up of x[rows, 2 n], the gate first; out[rows, n] is contiguous.
PLLM_EXPORT int pllm_silu_mul(const float* x, int64_t rows, int64_t x_stride, int64_t n, float* out);

// Queries and keys before attention: heads over their root mean square, where they have a weight, and turned, where there are
// angles: pairs (x[i], x[i + half]) by the angle i of their token.
typedef struct {
  const float* x;       // [tokens, heads, head_dim], a head contiguous
  const float* weight;  // [head_dim] or null
  float* out;           // [tokens, heads, head_dim], contiguous
  int64_t heads, token_stride, head_stride;
} PllmHeads;
typedef struct {
  PllmHeads q, k;
  const float *cos, *sin;  // [tokens, half], or both null
  int64_t tokens, head_dim, half, cos_stride, sin_stride;
  float eps, weight_offset;
} PllmNormRope;
PLLM_EXPORT int pllm_norm_rope(const PllmNormRope* a);

// Copies whole blocks: pairs[n][2] = (source, target).
PLLM_EXPORT int pllm_copy_blocks(void* kv, int64_t num_blocks, int64_t bytes_per_block, const int64_t* pairs, int64_t n);

// Per row of logits[R,V]: the first index of the maximum, the maximum, and a PLLM_ROW_* status.
PLLM_EXPORT int pllm_argmax(const float* logits, int64_t rows, int64_t vocab, int64_t stride, int64_t* ids, float* maxima,
                            int32_t* status);
PLLM_EXPORT int pllm_logsumexp(const float* logits, int64_t rows, int64_t vocab, int64_t stride, double* out);

// One draw per row by inverse CDF in token-id order: temperature, min-p, top-k, top-p, in vLLM's order. temperature
// below 1e-5: argmax. top_k <= 0 or >= V, top_p >= 1, min_p <= 0: off. uniform in [0, 1).
PLLM_EXPORT int pllm_sample_rows(const float* logits, int64_t rows, int64_t vocab, int64_t stride, const float* temperature,
                                 const int32_t* top_k, const float* top_p, const float* min_p, const double* uniform,
                                 int64_t* ids, int32_t* status);

#ifdef __cplusplus
}
#endif
