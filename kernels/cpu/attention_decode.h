// Attention of few query rows: keys and values are read where they lie. Included by attention.cpp only.
#pragma once

#include <string.h>

#include "attention_item.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

template <class T>
constexpr bool kMixes = false;  // whether load_two changes the order of elements
template <>
constexpr bool kMixes<uint16_t> = true;
constexpr int64_t kDecodeRows = 4;  // up to here keys are read in place

// Keys that are asked for ahead of their use: memory is slower than the arithmetic here.
constexpr int64_t kAheadKeys = 64;

PLLM_INLINE void prefetch(const void* p, int64_t bytes) {  // into L2: more lines can be under way than into L1
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)p + i, _MM_HINT_T1);
}

// o[R][d..] = sum over keys of s[R][key] row[key][offset + d..], C pairs of vectors. `bytes`: of a value to prefetch.
template <int R, int C, class T>
PLLM_INLINE void weighted_values(const float* s, const T* const* row, int64_t offset, int64_t keys, int64_t d, int64_t bytes,
                                 float* o, int64_t o_stride) {
  vf acc[R][2 * C];
  PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int l = 0; l < 2 * C; l++) acc[r][l] = zero();
  for (int64_t i = 0; i < keys; i++) {
    const T* value = row[i] + offset + d;
    if (bytes) prefetch(row[least(i + kAheadKeys, keys - 1)] + offset, bytes);
    vf x[2 * C];
    PLLM_UNROLL for (int l = 0; l < C; l++) load_two(value + l * 2 * kLanes, &x[2 * l], &x[2 * l + 1]);
    PLLM_UNROLL for (int r = 0; r < R; r++) {
      const vf p = set1(s[r * kSpan + i]);
      PLLM_UNROLL for (int l = 0; l < 2 * C; l++) acc[r][l] = fmadd(p, x[l], acc[r][l]);
    }
  }
  PLLM_UNROLL for (int r = 0; r < R; r++)
      PLLM_UNROLL for (int l = 0; l < 2 * C; l++) store(o + r * o_stride + d + l * kLanes, acc[r][l]);
}

int64_t decode_floats(const Call& c) { return kDecodeRows * (c.a->head_dim + kSpan + c.padded) + c.padded; }

// One query token, R heads of a group from `row`: softmax over a span of keys in two passes. head_dim % kLanes == 0.
// Whole pairs of vectors of head_dim are kept in the order of load_two: q on the way in, the output on the way out.
template <int R, class T>
void decode_span(const Call& c, const Item& item, int64_t row, float* work) {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, pairs = D / (2 * kLanes) * (2 * kLanes);
  const int64_t keys = item.key1 - item.key0, padded_keys = round_up(keys, kLanes), bytes = D * (int64_t)sizeof(T);
  float* q = work;           // [R][D], scaled
  float* s = q + R * D;      // [R][kSpan]
  float* o = s + R * kSpan;  // [R][padded], then one row
  const float* from = a.q + (a.query_start[item.sequence] + item.token0) * a.q_strides[0] +
                      (item.kv_head * c.group + row) * a.q_strides[1];
  for (int r = 0; r < R; r++, from += a.q_strides[1]) {
    if constexpr (!kMixes<T>) {
      for (int64_t d = 0; d < D; d += kLanes) store(q + r * D + d, mul(load(from + d), set1(a.scale)));
      continue;
    }
    for (int64_t d = 0; d < pairs; d += 2 * kLanes)
      for (int i = 0; i < 2 * kLanes; i++) q[r * D + d + place_of((const T*)nullptr, i)] = from[d + i] * a.scale;
    for (int64_t d = pairs; d < D; d++) q[r * D + d] = from[d] * a.scale;
  }

  // Where each key lies; its value lies `to_value` further. Up to whole vectors of scores the last key again; then, for they are
  // only asked for ahead, the first values.
  const T* key[kSpan + kAheadKeys];
  const int64_t to_value = a.kv_heads * plane_of<T>(a);
  Cursor<T> cursor = Cursor<T>::at(a, item.sequence, item.kv_head, 0, item.key0);
  for (int64_t i = 0; i < keys; i++) {
    key[i] = cursor.here();
    if (i < kAheadKeys) prefetch(key[i], bytes);
    if (i + 1 < keys) cursor.next();
  }
  for (int64_t i = keys; i < padded_keys; i++) key[i] = key[keys - 1];
  for (int64_t i = 0; i < kAheadKeys; i++) key[padded_keys + i] = key[least(i, keys - 1)] + to_value;

  constexpr int J = R <= 2 ? 4 : 2;  // keys at a time: R*J accumulators
  for (int64_t i = 0; i < padded_keys; i += kLanes) {
    vf dot[R][kLanes];
    PLLM_UNROLL for (int j = 0; j < kLanes; j += J) {
      PLLM_UNROLL for (int l = 0; l < J; l++) prefetch(key[i + j + l + kAheadKeys], bytes);
      vf acc[R][J];
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int l = 0; l < J; l++) acc[r][l] = zero();
      for (int64_t d = 0; d < pairs; d += 2 * kLanes) {
        PLLM_UNROLL for (int l = 0; l < J; l++) {
          vf x0, x1;
          load_two(key[i + j + l] + d, &x0, &x1);
          PLLM_UNROLL for (int r = 0; r < R; r++)
              acc[r][l] = fmadd(load(q + r * D + d + kLanes), x1, fmadd(load(q + r * D + d), x0, acc[r][l]));
        }
      }
      if (pairs < D) {
        PLLM_UNROLL for (int l = 0; l < J; l++) {
          const vf x = load(key[i + j + l] + pairs);
          PLLM_UNROLL for (int r = 0; r < R; r++) acc[r][l] = fmadd(load(q + r * D + pairs), x, acc[r][l]);
        }
      }
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int l = 0; l < J; l++) dot[r][j + l] = acc[r][l];
    }
    PLLM_UNROLL for (int r = 0; r < R; r++) store(s + r * kSpan + i, sum_each(dot[r]));
  }

  float maximum[R], sum[R];
  for (int r = 0; r < R; r++) {
    float* row_s = s + r * kSpan;
    if (a.softcap > 0) soft_cap(row_s, padded_keys, a.softcap);
    vf top = set1(-INFINITY);
    for (int64_t i = 0; i < padded_keys; i += kLanes) top = max(top, load(row_s + i));  // the padding repeats the last key
    maximum[r] = reduce_max(top);
    const vf m = set1(maximum[r]);
    vf total = zero();
    for (int64_t i = 0; i < padded_keys; i += kLanes) {
      const vf p = keep_first(exp(sub(load(row_s + i), m)), keys - i, zero());
      store(row_s + i, p);
      total = add(total, p);
    }
    sum[r] = reduce_add(total);
  }

  // Pairs of vectors of head_dim at a time: R*2*C accumulators.
  constexpr int C = kLanes == 16 ? (R == 1 ? 4 : R == 2 ? 4 : 2) : (R == 1 ? 4 : R == 2 ? 2 : 1);
  int64_t d = 0;
  for (; d < pairs;) {
    const int64_t left = (pairs - d) / (2 * kLanes);
    if (left >= C)
      weighted_values<R, C>(s, key, to_value, keys, d, d == 0 ? bytes : 0, o, c.padded), d += C * 2 * kLanes;
    else
      weighted_values<R, 1>(s, key, to_value, keys, d, d == 0 ? bytes : 0, o, c.padded), d += 2 * kLanes;
  }
  if (pairs < D) {
    vf acc[R];
    PLLM_UNROLL for (int r = 0; r < R; r++) acc[r] = zero();
    for (int64_t i = 0; i < keys; i++) {
      const vf x = load(key[i] + to_value + pairs);
      PLLM_UNROLL for (int r = 0; r < R; r++) acc[r] = fmadd(set1(s[r * kSpan + i]), x, acc[r]);
    }
    PLLM_UNROLL for (int r = 0; r < R; r++) store(o + r * c.padded + pairs, acc[r]);
  }
  float* natural = o + R * c.padded;
  for (int r = 0; r < R; r++) {
    const float* mixed = o + r * c.padded;
    if constexpr (!kMixes<T>) {
      emit(c, item, row + r, maximum[r], sum[r], mixed);
      continue;
    }
    for (d = 0; d < pairs; d += 2 * kLanes)
      for (int i = 0; i < 2 * kLanes; i++) natural[d + i] = mixed[d + place_of((const T*)nullptr, i)];
    for (d = pairs; d < D; d++) natural[d] = mixed[d];
    emit(c, item, row + r, maximum[r], sum[r], natural);
  }
}

}  // namespace

}  // namespace PLLM_ISA
}  // namespace pllm
