// The C interface: checks arguments, picks the instruction set, keeps the scratch memory. Compiled for any x86-64.
#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "kernels.h"

namespace pllm {

namespace {

thread_local char last_error[512];

}  // namespace

int fail(int code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return code;
}

namespace {

int out_of_memory(int code) {
  return code ? fail(code, "no memory left for the operators' scratch space") : PLLM_OK;
}

#define PLLM_TABLE(isa)                                                                   \
  {isa::linear,          isa::embedding, isa::quantized_linear, isa::quantized_embedding, \
   isa::paged_attention, isa::rms_normalize, isa::silu_mul,     isa::norm_rope,           \
   isa::argmax,          isa::logsumexp, isa::sample_rows}
const Kernels kAvx2 = PLLM_TABLE(avx2);
const Kernels kAvx512 = PLLM_TABLE(avx512);
#undef PLLM_TABLE

// Decided once, on first use.
struct Choice {
  const Kernels* kernels = nullptr;
  const char* isa = "";
  char error[256] = "";

  Choice() {
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vnni");
    const char* wish = getenv("PLLM_CPU_ISA");
    if (wish && *wish) {
      if (strcmp(wish, "avx2") && strcmp(wish, "avx512")) {
        snprintf(error, sizeof error, "PLLM_CPU_ISA=%.40s is unknown: use avx2 or avx512, or unset it", wish);
        return;
      }
      if (!(wish[3] == '2' ? has_avx2 : has_avx512)) {
        snprintf(error, sizeof error, "PLLM_CPU_ISA=%.40s, but this CPU has no %s: unset it", wish,
                 wish[3] == '2' ? "AVX2 with FMA" : "AVX-512 (F, BW, VL, DQ, VNNI)");
        return;
      }
    } else if (!has_avx2) {
      snprintf(error, sizeof error, "this CPU has no AVX2 with FMA: run on an x86-64-v3 machine (Haswell or Zen, or newer)");
      return;
    }
    const bool wide = wish && *wish ? wish[3] == '5' : has_avx512;
    kernels = wide ? &kAvx512 : &kAvx2;
    isa = wide ? "avx512" : "avx2";
  }
};

const Choice& choice() {
  static const Choice made;
  return made;
}

int threads_wanted = 0;  // 0: as many as there are processors for this process
Tiling tiles = {0, 0, 0};

int processors() {
  cpu_set_t set;  // too small a set for some machines
  return sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
}

struct Buffers {
  void* memory[kScratchSlots] = {};
  size_t bytes[kScratchSlots] = {};
  ~Buffers() {
    for (void* m : memory) free(m);
  }
};
thread_local Buffers buffers;

int check_weight(int weight_dtype, int64_t n, int64_t k) {
  if (weight_dtype != PLLM_FLOAT32 && weight_dtype != PLLM_BFLOAT16)
    return fail(PLLM_INVALID_ARGUMENT, "weight dtype %d: 0 (float32) and 1 (bfloat16) exist", weight_dtype);
  if (n < 1 || k < 1) return fail(PLLM_INVALID_ARGUMENT, "weight of %lld by %lld", (long long)n, (long long)k);
  return PLLM_OK;
}

int check_quantized(int64_t n, int64_t k) {
  if (n < 1 || k < 1 || k > 65536)  // 255 * 127 * k must fit 32 bits
    return fail(PLLM_INVALID_ARGUMENT, "quantised weight of %lld by %lld: 1 to 65,536 inputs are possible", (long long)n,
                (long long)k);
  return PLLM_OK;
}

int check_product(int64_t m, int64_t x_stride, int64_t n, int64_t k, int64_t y_stride) {
  if (m < 0 || (m > 1 && (x_stride < k || y_stride < n)))
    return fail(PLLM_INVALID_ARGUMENT, "linear: %lld rows, row strides %lld of %lld and %lld of %lld", (long long)m,
                (long long)x_stride, (long long)k, (long long)y_stride, (long long)n);
  return PLLM_OK;
}

int check_ids(const int64_t* ids, int64_t tokens, int64_t n, int64_t k, int64_t y_stride) {
  if (tokens < 0 || (tokens > 1 && y_stride < k))
    return fail(PLLM_INVALID_ARGUMENT, "embedding: %lld tokens, row stride %lld of %lld", (long long)tokens,
                (long long)y_stride, (long long)k);
  for (int64_t t = 0; t < tokens; t++)
    if (ids[t] < 0 || ids[t] >= n)
      return fail(PLLM_INVALID_ARGUMENT, "embedding: token %lld has id %lld, outside the vocabulary of %lld", (long long)t,
                  (long long)ids[t], (long long)n);
  return PLLM_OK;
}

int check_rows(int64_t rows, int64_t vocab, int64_t stride) {
  if (rows < 0 || vocab < 1 || vocab > INT32_MAX || (rows > 1 && stride < vocab))
    return fail(PLLM_INVALID_ARGUMENT, "logits of %lld rows by %lld with row stride %lld", (long long)rows, (long long)vocab,
                (long long)stride);
  return PLLM_OK;
}

// Everything that the kernels rely on, before anything is written.
int check_attention(const PllmPagedAttention& a) {
  if (a.kv_dtype != PLLM_FLOAT32 && a.kv_dtype != PLLM_BFLOAT16 && a.kv_dtype != PLLM_INT8)
    return fail(PLLM_INVALID_ARGUMENT, "cache dtype %d: 0 (float32), 1 (bfloat16) and 2 (int8) exist", a.kv_dtype);
  if (a.tokens < 0 || a.sequences < 0 || a.table_width < 0 || a.num_blocks < 0 || a.num_layers < 1 || a.block_size < 1)
    return fail(PLLM_INVALID_ARGUMENT, "a size of the batch or of the cache is negative or zero");
  if (a.head_dim < 8 || a.head_dim > 512 || a.head_dim % 8)
    return fail(PLLM_INVALID_ARGUMENT, "head_dim %lld: a multiple of 8 from 8 to 512 is supported", (long long)a.head_dim);
  if (a.kv_heads < 1 || a.heads < 1 || a.heads % a.kv_heads)
    return fail(PLLM_INVALID_ARGUMENT, "%lld query heads are no multiple of %lld key heads", (long long)a.heads,
                (long long)a.kv_heads);
  if (a.layer < 0 || a.layer >= a.num_layers)
    return fail(PLLM_INVALID_ARGUMENT, "layer %lld of %lld", (long long)a.layer, (long long)a.num_layers);
  if (a.tokens == 0) return PLLM_OK;
  if (a.q_strides[2] != 1 || a.k_strides[2] != 1 || a.v_strides[2] != 1)
    return fail(PLLM_INVALID_ARGUMENT, "the last dimension of q, k and v must be contiguous (strides %lld, %lld, %lld)",
                (long long)a.q_strides[2], (long long)a.k_strides[2], (long long)a.v_strides[2]);
  if (a.sliding_window < 0 || !(a.softcap >= 0))
    return fail(PLLM_INVALID_ARGUMENT, "sliding window %lld and soft cap %g must not be negative", (long long)a.sliding_window,
                (double)a.softcap);
  if (a.query_start[0] != 0 || a.query_start[a.sequences] != a.tokens)
    return fail(PLLM_INVALID_ARGUMENT, "query_start runs from %d to %d, but there are %lld tokens", a.query_start[0],
                a.query_start[a.sequences], (long long)a.tokens);
  for (int64_t b = 0; b < a.sequences; b++) {
    const int64_t tokens = (int64_t)a.query_start[b + 1] - a.query_start[b], context = a.context_len[b];
    if (tokens < 0) return fail(PLLM_INVALID_ARGUMENT, "query_start falls at sequence %lld", (long long)b);
    if (tokens == 0) continue;
    if (context < tokens)
      return fail(PLLM_INVALID_ARGUMENT, "sequence %lld has %lld new tokens but a context of %lld", (long long)b,
                  (long long)tokens, (long long)context);
    const int64_t blocks = (context + a.block_size - 1) / a.block_size;
    if (blocks > a.table_width)
      return fail(PLLM_INVALID_ARGUMENT, "sequence %lld needs %lld blocks for %lld tokens, but the block table is %lld wide",
                  (long long)b, (long long)blocks, (long long)context, (long long)a.table_width);
    const int64_t oldest = a.sliding_window ? context - tokens - a.sliding_window + 1 : 0;
    for (int64_t i = oldest > 0 ? oldest / a.block_size : 0; i < blocks; i++) {
      const int32_t id = a.block_table[b * a.table_width + i];
      if (id < 0 || id >= a.num_blocks)
        return fail(PLLM_INVALID_ARGUMENT, "sequence %lld, block %lld: id %d is outside the pool of %lld blocks", (long long)b,
                    (long long)i, id, (long long)a.num_blocks);
    }
  }
  return PLLM_OK;
}

}  // namespace

void* scratch(ScratchSlot slot, size_t bytes) {
  Buffers& b = buffers;
  if (b.bytes[slot] < bytes) {
    const size_t rounded = (bytes + bytes / 2 + 4095) / 4096 * 4096;  // grown rarely
    free(b.memory[slot]);
    b.memory[slot] = aligned_alloc(64, rounded);
    b.bytes[slot] = b.memory[slot] ? rounded : 0;
  }
  return b.memory[slot];
}

const Tiling& tiling() { return tiles; }

int num_threads() {
  return threads_wanted > 0 ? threads_wanted : processors();
}

}  // namespace pllm

using namespace pllm;

// The kernels of this CPU, or a return from the function with the reason there are none.
#define PLLM_KERNELS(name)                                                         \
  const Choice& chosen = choice();                                                 \
  if (!chosen.kernels) return fail(PLLM_UNSUPPORTED_CPU, "%s", chosen.error);      \
  const Kernels& name = *chosen.kernels

extern "C" {

int pllm_abi_version(void) { return PLLM_ABI_VERSION; }

const char* pllm_last_error(void) { return last_error; }

int pllm_init(char* isa_out, size_t size) {
  if (isa_out && size) snprintf(isa_out, size, "%s", choice().isa);
  return choice().kernels ? PLLM_OK : fail(PLLM_UNSUPPORTED_CPU, "%s", choice().error);
}

const char* pllm_cpu_isa(void) { return choice().isa; }

int pllm_set_num_threads(int threads) {
  if (threads < 1 || threads > 1024) return fail(PLLM_INVALID_ARGUMENT, "%d threads: 1 to 1024 are possible", threads);
  threads_wanted = threads;
  // Torch's own operators, where a program calls some, use OpenMP, which came with torch: maybe later than this library.
  if (void* set = dlsym(RTLD_DEFAULT, "omp_set_num_threads")) ((void (*)(int))set)(threads);
  return PLLM_OK;
}

int pllm_num_threads(void) { return num_threads(); }

int pllm_set_tiling(int streamed, int blocked, int rows) {
  const int each[] = {streamed, blocked, rows};
  for (int powers : each)
    if (powers < -4 || powers > 4) return fail(PLLM_INVALID_ARGUMENT, "a tiling of %d powers of two: -4 to 4 are possible", powers);
  tiles = {streamed, blocked, rows};
  return PLLM_OK;
}

int pllm_linear(const float* x, int64_t m, int64_t x_stride, const void* weight, int weight_dtype, int64_t n, int64_t k,
                const float* bias, float* y, int64_t y_stride) {
  PLLM_KERNELS(kernels);
  if (int code = check_weight(weight_dtype, n, k)) return code;
  if (int code = check_product(m, x_stride, n, k, y_stride)) return code;
  if (m == 0) return PLLM_OK;
  return out_of_memory(kernels.linear(x, m, x_stride, weight, weight_dtype, n, k, bias, y, y_stride));
}

int pllm_embedding(const int64_t* ids, int64_t tokens, const void* weight, int weight_dtype, int64_t n, int64_t k, float* y,
                   int64_t y_stride) {
  PLLM_KERNELS(kernels);
  if (int code = check_weight(weight_dtype, n, k)) return code;
  if (int code = check_ids(ids, tokens, n, k, y_stride)) return code;
  kernels.embedding(ids, tokens, weight, weight_dtype, n, k, y, y_stride);
  return PLLM_OK;
}

int pllm_quantized_linear(const float* x, int64_t m, int64_t x_stride, const uint8_t* weight, const void* scale,
                          int64_t groups, int64_t n, int64_t k, const float* bias, int gated, float* y, int64_t y_stride) {
  PLLM_KERNELS(kernels);
  if (int code = check_quantized(n, k)) return code;
  if (groups < 0 || (groups && k % (8 * groups)))
    return fail(PLLM_INVALID_ARGUMENT, "%lld inputs in %lld groups: each must have a multiple of 8", (long long)k,
                (long long)groups);
  if (gated && n % 32) return fail(PLLM_INVALID_ARGUMENT, "%lld gated outputs: a multiple of 32 is possible", (long long)n);
  if (int code = check_product(m, x_stride, gated ? n / 2 : n, k, y_stride)) return code;
  if (m == 0) return PLLM_OK;
  return out_of_memory(kernels.quantized_linear(x, m, x_stride, weight, scale, groups, n, k, bias, gated, y, y_stride));
}

int pllm_quantized_embedding(const int64_t* ids, int64_t tokens, const uint8_t* weight, const float* scale, int64_t n,
                             int64_t k, float* y, int64_t y_stride) {
  PLLM_KERNELS(kernels);
  if (int code = check_quantized(n, k)) return code;
  if (int code = check_ids(ids, tokens, n, k, y_stride)) return code;
  kernels.quantized_embedding(ids, tokens, weight, scale, k, y, y_stride);
  return PLLM_OK;
}

int pllm_paged_attention(const PllmPagedAttention* a) {
  PLLM_KERNELS(kernels);
  if (int code = check_attention(*a)) return code;
  return a->tokens ? out_of_memory(kernels.paged_attention(*a)) : PLLM_OK;
}

int pllm_rms_normalize(const PllmRmsNorm* a) {
  PLLM_KERNELS(kernels);
  if (a->rows < 0 || a->n < 1 || (a->rows > 1 && a->x_stride < a->n) || !a->residual != !a->total ||
      (a->residual && a->rows > 1 && a->residual_stride < a->n))
    return fail(PLLM_INVALID_ARGUMENT, "norm: %lld rows of %lld, row strides %lld and %lld", (long long)a->rows, (long long)a->n,
                (long long)a->x_stride, (long long)a->residual_stride);
  kernels.rms_normalize(*a);
  return PLLM_OK;
}

int pllm_silu_mul(const float* x, int64_t rows, int64_t x_stride, int64_t n, float* out) {
  PLLM_KERNELS(kernels);
  if (rows < 0 || n < 1 || (rows > 1 && x_stride < 2 * n))
    return fail(PLLM_INVALID_ARGUMENT, "silu: %lld rows of 2 * %lld, row stride %lld", (long long)rows, (long long)n,
                (long long)x_stride);
  kernels.silu_mul(x, rows, x_stride, n, out);
  return PLLM_OK;
}

int pllm_norm_rope(const PllmNormRope* a) {
  PLLM_KERNELS(kernels);
  const bool turns = a->cos && a->sin;
  if (a->tokens < 0 || a->head_dim < 1 || a->head_dim > PLLM_MAX_HEAD_DIM || a->q.heads < 1 || a->k.heads < 1 ||
      (turns && (a->half < 1 || 2 * a->half > a->head_dim)) || !a->cos != !a->sin ||
      (!turns && !(a->q.weight && a->k.weight)))
    return fail(PLLM_INVALID_ARGUMENT, "heads before attention: %lld tokens, %lld and %lld heads of %lld, %lld pairs",
                (long long)a->tokens, (long long)a->q.heads, (long long)a->k.heads, (long long)a->head_dim, (long long)a->half);
  kernels.norm_rope(*a);
  return PLLM_OK;
}

int pllm_copy_blocks(void* kv, int64_t num_blocks, int64_t bytes_per_block, const int64_t* pairs, int64_t n) {
  for (int64_t i = 0; i < 2 * n; i++)
    if (pairs[i] < 0 || pairs[i] >= num_blocks)
      return fail(PLLM_INVALID_ARGUMENT, "copy_blocks: id %lld is outside the pool of %lld blocks", (long long)pairs[i],
                  (long long)num_blocks);
  for (int64_t i = 0; i < n; i++)
    if (pairs[2 * i] != pairs[2 * i + 1])
      memcpy((char*)kv + pairs[2 * i + 1] * bytes_per_block, (const char*)kv + pairs[2 * i] * bytes_per_block,
             (size_t)bytes_per_block);
  return PLLM_OK;
}

int pllm_argmax(const float* logits, int64_t rows, int64_t vocab, int64_t stride, int64_t* ids, float* maxima,
                int32_t* status) {
  PLLM_KERNELS(kernels);
  if (int code = check_rows(rows, vocab, stride)) return code;
  kernels.argmax(logits, rows, vocab, stride, ids, maxima, status);
  return PLLM_OK;
}

int pllm_logsumexp(const float* logits, int64_t rows, int64_t vocab, int64_t stride, double* out) {
  PLLM_KERNELS(kernels);
  if (int code = check_rows(rows, vocab, stride)) return code;
  kernels.logsumexp(logits, rows, vocab, stride, out);
  return PLLM_OK;
}

int pllm_sample_rows(const float* logits, int64_t rows, int64_t vocab, int64_t stride, const float* temperature,
                     const int32_t* top_k, const float* top_p, const float* min_p, const double* uniform, int64_t* ids,
                     int32_t* status) {
  PLLM_KERNELS(kernels);
  if (int code = check_rows(rows, vocab, stride)) return code;
  return out_of_memory(
      kernels.sample_rows(logits, rows, vocab, stride, temperature, top_k, top_p, min_p, uniform, ids, status));
}

}  // extern "C"
