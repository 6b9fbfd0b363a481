// Vectors of whole numbers: int8 widened to words of 16 bits, whose products are summed in 32. Linkage as in simd.h.
#pragma once

#include <string.h>

#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

constexpr int kWords = 2 * kLanes;  // in a vector

// widen: kWords of int8. widen_first: n of them, a multiple of 8 below kWords, then zeros.
// interleave: of two vectors, word beside word, each 128 bits for themselves; in_order puts sums of such pairs right.
// store_words: kLanes values, rounded to nearest even.
#if defined(__AVX512F__)

typedef __m512i vi;
PLLM_INLINE vi load_whole(const void* p) { return _mm512_loadu_si512(p); }
PLLM_INLINE void store_whole(void* p, vi a) { _mm512_storeu_si512(p, a); }
PLLM_INLINE vi set_all(int32_t a) { return _mm512_set1_epi32(a); }
PLLM_INLINE vi as_whole(vf a) { return _mm512_castps_si512(a); }
PLLM_INLINE vf to_float(vi a) { return _mm512_cvtepi32_ps(a); }
PLLM_INLINE vi widen(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
PLLM_INLINE vi widen_first(const int8_t* p, int64_t n) {
  return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((1u << n) - 1, p));
}
// Written out: see quantized_linear.cpp.
PLLM_INLINE vi multiply_add_words(vi sum, vi a, vi b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
PLLM_INLINE void interleave(vi a, vi b, vi* low, vi* high) {
  *low = _mm512_unpacklo_epi16(a, b);
  *high = _mm512_unpackhi_epi16(a, b);
}
PLLM_INLINE void in_order(vi* low, vi* high) {
  const vi l = *low, h = *high;
  *low = _mm512_permutex2var_epi32(l, _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23), h);
  *high = _mm512_permutex2var_epi32(l, _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31), h);
}
PLLM_INLINE void store_words(int16_t* p, vf a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
}
// Of four bytes a lane, in order: the first two as words, and the last two.
PLLM_INLINE void widen_quads(vi a, vi* first, vi* last) {
  const vi odd = _mm512_shuffle_epi8(a, _mm512_set4_epi32(0x0f0d0e0c, 0x0b090a08, 0x07050604, 0x03010200));
  *first = _mm512_srai_epi16(_mm512_slli_epi16(odd, 8), 8);
  *last = _mm512_srai_epi16(odd, 8);
}
PLLM_INLINE vi sum_each(const vi a[kLanes]) {
  vi b[8], c[4];
  PLLM_UNROLL for (int i = 0; i < 8; i++)
    b[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]));
  PLLM_UNROLL for (int i = 0; i < 4; i++)
    c[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(b[2 * i], b[2 * i + 1]), _mm512_unpackhi_epi64(b[2 * i], b[2 * i + 1]));
  const vi d0 = _mm512_add_epi32(_mm512_shuffle_i32x4(c[0], c[1], 0x88), _mm512_shuffle_i32x4(c[0], c[1], 0xdd));
  const vi d1 = _mm512_add_epi32(_mm512_shuffle_i32x4(c[2], c[3], 0x88), _mm512_shuffle_i32x4(c[2], c[3], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(d0, d1, 0x88), _mm512_shuffle_i32x4(d0, d1, 0xdd));
}

#else

typedef __m256i vi;
PLLM_INLINE vi load_whole(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
PLLM_INLINE void store_whole(void* p, vi a) { _mm256_storeu_si256((__m256i*)p, a); }
PLLM_INLINE vi set_all(int32_t a) { return _mm256_set1_epi32(a); }
PLLM_INLINE vi as_whole(vf a) { return _mm256_castps_si256(a); }
PLLM_INLINE vf to_float(vi a) { return _mm256_cvtepi32_ps(a); }
PLLM_INLINE vi widen(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
PLLM_INLINE vi widen_first(const int8_t* p, int64_t) { return _mm256_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p)); }
PLLM_INLINE vi multiply_add_words(vi sum, vi a, vi b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
PLLM_INLINE void interleave(vi a, vi b, vi* low, vi* high) {
  *low = _mm256_unpacklo_epi16(a, b);
  *high = _mm256_unpackhi_epi16(a, b);
}
PLLM_INLINE void in_order(vi* low, vi* high) {
  const vi l = *low, h = *high;
  *low = _mm256_permute2x128_si256(l, h, 0x20);
  *high = _mm256_permute2x128_si256(l, h, 0x31);
}
PLLM_INLINE void store_words(int16_t* p, vf a) {
  const vi whole = _mm256_cvtps_epi32(a);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
PLLM_INLINE void widen_quads(vi a, vi* first, vi* last) {
  const __m128i order = _mm_setr_epi32(0x03010200, 0x07050604, 0x0b090a08, 0x0f0d0e0c);
  const vi odd = _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(order));
  *first = _mm256_srai_epi16(_mm256_slli_epi16(odd, 8), 8);
  *last = _mm256_srai_epi16(odd, 8);
}
PLLM_INLINE vi sum_each(const vi a[kLanes]) {
  const vi b0 = _mm256_hadd_epi32(a[0], a[1]), b1 = _mm256_hadd_epi32(a[2], a[3]);
  const vi b2 = _mm256_hadd_epi32(a[4], a[5]), b3 = _mm256_hadd_epi32(a[6], a[7]);
  const vi c0 = _mm256_hadd_epi32(b0, b1), c1 = _mm256_hadd_epi32(b2, b3);
  return _mm256_add_epi32(_mm256_permute2x128_si256(c0, c1, 0x20), _mm256_permute2x128_si256(c0, c1, 0x31));
}

#endif

constexpr float kMostSteps = 32767.0f;  // of a word, either way

// k values, times `steps`, as words; zeros up to the next whole vector, which `to` has room for.
PLLM_INLINE void round_words(const float* x, int64_t k, vf steps, int16_t* to) {
  for (int64_t i = 0; i < k; i += kLanes) store_words(to + i, mul(load_first(x + i, k - i), steps));
}

// Two words, in every lane.
PLLM_INLINE vi set_pair(const int16_t* p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return set_all(pair);
}

}  // namespace PLLM_ISA
}  // namespace pllm
