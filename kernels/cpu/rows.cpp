// Operators over rows: root-mean-square norms, SiLU, and what stands before attention: norms of heads, rotary embeddings.
//
// A row's result depends on the row alone, and sums have one order on either instruction set.
#include <string.h>

#include "kernels.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kPieceFloats = 8 << 10;  // of a piece of a loop; a loop of two pieces or fewer is not worth a second thread

PLLM_INLINE int64_t rows_of_piece(int64_t row_floats) { return kPieceFloats / row_floats > 0 ? kPieceFloats / row_floats : 1; }
PLLM_INLINE bool too_small(int64_t rows, int64_t row_floats) { return rows * row_floats <= 2 * kPieceFloats; }

PLLM_INLINE vf read(const float* p, int64_t left) { return left >= kLanes ? load(p) : load_first(p, left); }
PLLM_INLINE void write(float* p, vf a, int64_t left) {
  if (left >= kLanes) store(p, a);
  else store_first(p, a, left);
}

// 1 / sqrt(mean(x^2) + eps). Sixteen sums side by side, whatever the vectors' length, added up in one order.
PLLM_INLINE float inverse_root_mean(const float* x, int64_t n, float eps) {
  constexpr int kParts = 16 / kLanes;
  vf sum[kParts];
  PLLM_UNROLL for (int p = 0; p < kParts; p++) sum[p] = zero();
  for (int64_t i = 0; i < n; i += 16)
    PLLM_UNROLL for (int p = 0; p < kParts; p++) {
      const vf a = read(x + i + p * kLanes, n - i - p * kLanes);
      sum[p] = fmadd(a, a, sum[p]);
    }
  const float total = reduce_add(kParts == 2 ? add(sum[0], sum[kParts - 1]) : sum[0]);
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(total / (float)n + eps)));
}

// y = x * factor * (weight + offset)
PLLM_INLINE void scale_row(const float* x, const float* weight, int64_t n, float factor, float offset, float* y) {
  for (int64_t i = 0; i < n; i += kLanes)
    write(y + i, mul(mul(read(x + i, n - i), set1(factor)), add(read(weight + i, n - i), set1(offset))), n - i);
}

// Pairs (x[i], x[i + half]) turned by the angles of their token; what lies beyond them stays.
PLLM_INLINE void turn(const float* x, const float* cos, const float* sin, int64_t half, int64_t n, float* y) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t left = half - i;
    const vf a = read(x + i, left), b = read(x + half + i, left), c = read(cos + i, left), s = read(sin + i, left);
    write(y + i, sub(mul(a, c), mul(b, s)), left);
    write(y + half + i, add(mul(b, c), mul(a, s)), left);
  }
  if (n > 2 * half) memcpy(y + 2 * half, x + 2 * half, sizeof(float) * (n - 2 * half));
}

void norm_rope_heads(const PllmHeads& h, const PllmNormRope& a, int64_t token) {
  alignas(64) float normed[PLLM_MAX_HEAD_DIM];
  for (int64_t head = 0; head < h.heads; head++) {
    const float* x = h.x + token * h.token_stride + head * h.head_stride;
    float* y = h.out + (token * h.heads + head) * a.head_dim;
    if (h.weight) {
      float* to = a.cos ? normed : y;
      scale_row(x, h.weight, a.head_dim, inverse_root_mean(x, a.head_dim, a.eps), a.weight_offset, to);
      x = to;
    }
    if (a.cos) turn(x, a.cos + token * a.cos_stride, a.sin + token * a.sin_stride, a.half, a.head_dim, y);
  }
}

}  // namespace

void rms_normalize(const PllmRmsNorm& a) {
  loop(a.rows, rows_of_piece(a.n), too_small(a.rows, a.n), [&](int, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float* x = a.x + r * a.x_stride;
      if (a.residual) {
        const float* residual = a.residual + r * a.residual_stride;
        float* total = a.total + r * a.n;
        for (int64_t i = 0; i < a.n; i += kLanes)
          write(total + i, add(read(residual + i, a.n - i), read(x + i, a.n - i)), a.n - i);
        x = total;
      }
      scale_row(x, a.weight, a.n, inverse_root_mean(x, a.n, a.eps), a.weight_offset, a.out + r * a.n);
    }
  });
}

void silu_mul(const float* x, int64_t rows, int64_t x_stride, int64_t n, float* out) {
  loop(rows, rows_of_piece(2 * n), too_small(rows, 2 * n), [&](int, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float *gate = x + r * x_stride, *up = gate + n;
      for (int64_t i = 0; i < n; i += kLanes) write(out + r * n + i, silu_mul(read(gate + i, n - i), read(up + i, n - i)), n - i);
    }
  });
}

void norm_rope(const PllmNormRope& a) {
  const int64_t row_floats = (a.q.heads + a.k.heads) * a.head_dim;
  loop(a.tokens, rows_of_piece(row_floats), too_small(a.tokens, row_floats), [&](int, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) norm_rope_heads(a.q, a, t), norm_rope_heads(a.k, a, t);
  });
}

}  // namespace PLLM_ISA
}  // namespace pllm
