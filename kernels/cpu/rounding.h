// A row of floats as int8: 127 steps either way of its largest element, rounded to nearest even. Linkage as in simd.h.
#pragma once

#include <string.h>

#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

// store_rounded: kLanes values, rounded to nearest even, as int8.
#if defined(__AVX512F__)
PLLM_INLINE vf absolute(vf a) { return _mm512_abs_ps(a); }
PLLM_INLINE void store_rounded(int8_t* p, vf a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a))); }
#else
PLLM_INLINE vf absolute(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
PLLM_INLINE void store_rounded(int8_t* p, vf a) {
  const __m256i whole = _mm256_cvtps_epi32(a);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}
#endif

struct Rounding {
  vf steps;     // what elements are multiplied with before they are rounded
  float scale;  // what a step is worth
};

// Of a row of k elements. One with NaN or infinity in it has NaN or infinity for its scale, so that what is made of it is neither
// finite. One so small that its steps would be infinite is rounded to zeros.
PLLM_INLINE Rounding rounding_of(const float* x, int64_t k, float most_steps = 127.0f) {
  vf top = zero();
  bool nan = false;
  const auto look = [&](vf a) { nan |= any_nan(a), top = max(top, absolute(a)); };
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) look(load(x + i));
  if (i < k) look(load_first(x + i, k - i));
  const float largest = reduce_max(top), steps = most_steps / largest;
  return {set1(steps < INFINITY ? steps : 0.0f), nan ? NAN : largest / most_steps};
}

PLLM_INLINE void round_row(const float* x, int64_t k, int8_t* to, float* scale) {
  const Rounding row = rounding_of(x, k);
  *scale = row.scale;
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) store_rounded(to + i, mul(load(x + i), row.steps));
  if (i == k) return;
  int8_t part[kLanes];
  store_rounded(part, mul(load_first(x + i, k - i), row.steps));
  memcpy(to + i, part, (size_t)(k - i));
}

}  // namespace PLLM_ISA
}  // namespace pllm
