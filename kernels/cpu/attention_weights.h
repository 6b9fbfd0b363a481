// Over an int8 pool: queries and the softmax's weights as words of 16 bits. Included by attention.cpp only.
//
// A query row is rounded by its largest element. A row's weights are multiplied with the scales of their values and rounded by the
// largest product of one run of keys: so small ones are only rounded beside the large ones of their own run, and keep their
// precision beside one of an earlier run (an attention sink).
#pragma once

#include "attention_item.h"
#include "rounding.h"
#include "simd.h"
#include "words.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

// Below 2^31 stays what 512 products of a word with int8 add up to: 512 x 32767 x 128.
constexpr int64_t kMostProducts = 512;
static_assert(kMaxHeadDim <= kMostProducts, "a score would overflow");

// A query row of k elements; what a step of its words is worth is returned: NaN where the row has NaN or infinity in it, so that
// all made of it is NaN.
PLLM_INLINE float round_query(const float* q, int64_t k, int16_t* to) {
  const Rounding row = rounding_of(q, k, kMostSteps);
  round_words(q, k, row.steps, to);
  return row.scale < INFINITY ? row.scale : NAN;
}

// Of k scores, a multiple of kLanes, of which one at least is not hidden by -infinity; NaN if there is only NaN.
PLLM_INLINE float largest_score(const float* s, int64_t k) {
  vf top = set1(-INFINITY);
  for (int64_t i = 0; i < k; i += kLanes) top = max(load(s + i), top);  // top where the score is NaN
  const float found = reduce_max(top);
  return found == -INFINITY ? NAN : found;
}

// k scores become weights, e^(score - m), which `total` grows by, times their values' scales. Returns the largest of these; NaN if
// there is one. A hidden score makes 0, whatever its value's scale.
PLLM_INLINE float weigh(float* s, int64_t k, float m, const float* value_scale, vf* total) {
  const vf maximum = set1(m), hidden = set1(-INFINITY);
  vf sum = *total, top = zero(), spoilt = zero();
  for (int64_t i = 0; i < k; i += kLanes) {
    const vf score = load(s + i), p = exp(sub(score, maximum));
    const vf weight = zero_where(mul(p, load(value_scale + i)), score, hidden);
    store(s + i, weight);
    sum = add(sum, p), top = max(top, weight), spoilt = add(spoilt, weight);
  }
  *total = sum;
  return any_nan(spoilt) ? NAN : reduce_max(top);
}

// What weigh made, as words; what a step is worth is returned.
PLLM_INLINE float round_weights(const float* s, int64_t k, float largest, int16_t* to) {
  const float steps = kMostSteps / largest;
  round_words(s, k, set1(steps < INFINITY ? steps : 0.0f), to);
  return largest / kMostSteps;
}

}  // namespace

}  // namespace PLLM_ISA
}  // namespace pllm
