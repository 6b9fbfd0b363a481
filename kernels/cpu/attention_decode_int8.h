// Attention of few query rows over an int8 pool, in whole numbers: keys and values are read where they lie and widened to words of
// 16 bits, queries and weights are rounded to such (attention_weights.h). Included by attention.cpp only.
#pragma once

#include <string.h>

#include "attention_decode.h"
#include "attention_item.h"
#include "attention_weights.h"
#include "simd.h"
#include "words.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

// The arithmetic is so short that memory must not rest while weights are made, nor be asked in bursts: values are asked for further
// ahead than keys, by what is asked for meanwhile, and lines one by one, where the columns before them are multiplied.
constexpr int64_t kAheadValues = kAheadKeys + 32, kLine = 64;
constexpr int64_t kRun = 128;  // keys whose weights are rounded by one step
static_assert(kRun <= kMostProducts, "a sum of weighted values would overflow");

int64_t decode_int8_floats(const Call& c) {
  return kDecodeRows * (round_up(c.a->head_dim, kWords) / 2 + kSpan + kSpan / 2 + c.padded);
}

// o[R][d..] += step[R] x sum over a run's keys of weight[R][key] row[key][offset + d..], C times kWords columns; of the first
// run, o is only written. `last`: of head_dim, the columns below kWords that are left.
template <int R, int C>
PLLM_INLINE void weighted_words(const int16_t* weight, const int8_t* const* row, int64_t offset, int64_t key0, int64_t key1,
                                int64_t keys, int64_t d, int64_t last, const float* step, float* o, int64_t o_stride) {
  vi acc[R][2 * C];
  PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int l = 0; l < 2 * C; l++) acc[r][l] = set_all(0);
  const bool begins = d % kLine == 0;
  for (int64_t i = key0; i < key1; i += 2) {  // an odd last key comes twice, the second time without weight
    const int8_t *x = row[i] + offset + d, *y = row[i + 1] + offset + d;
    const int8_t* later_x = row[least(i + kAheadValues, keys - 1)] + offset + d;
    const int8_t* later_y = row[least(i + 1 + kAheadValues, keys - 1)] + offset + d;
    vi both[2 * C];
    PLLM_UNROLL for (int l = 0; l < C; l++) {
      if (begins && l * kWords % kLine == 0) {
        prefetch(later_x + l * kWords, 1);
        prefetch(later_y + l * kWords, 1);
      }
      const vi a = last ? widen_first(x, last) : widen(x + l * kWords), b = last ? widen_first(y, last) : widen(y + l * kWords);
      interleave(a, b, &both[2 * l], &both[2 * l + 1]);
    }
    PLLM_UNROLL for (int r = 0; r < R; r++) {
      const vi pair = set_pair(weight + r * kSpan + i);
      PLLM_UNROLL for (int l = 0; l < 2 * C; l++) acc[r][l] = multiply_add_words(acc[r][l], both[l], pair);
    }
  }
  PLLM_UNROLL for (int r = 0; r < R; r++) {
    PLLM_UNROLL for (int l = 0; l < C; l++) in_order(&acc[r][2 * l], &acc[r][2 * l + 1]);
    PLLM_UNROLL for (int l = 0; l < 2 * C; l++) {
      float* to = o + r * o_stride + d + l * kLanes;
      const vf sum = mul(to_float(acc[r][l]), set1(step[r]));
      store(to, key0 ? add(load(to), sum) : sum);
    }
  }
}

// One query token, R heads of a group from `row`: as decode_span.
template <int R>
void decode_span_int8(const Call& c, const Item& item, int64_t row, float* work) {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, whole = D / kWords * kWords, stride = round_up(D, kWords);
  const int64_t keys = item.key1 - item.key0, padded_keys = round_up(keys, kLanes);
  float* s = work;                                 // [R][kSpan]
  float* o = s + R * kSpan;                        // [R][padded]
  int16_t* weight = (int16_t*)(o + R * c.padded);  // [R][kSpan]
  int16_t* q = weight + R * kSpan;                 // [R][stride], zeros beyond D
  float q_step[R];
  const float* from = a.q + (a.query_start[item.sequence] + item.token0) * a.q_strides[0] +
                      (item.kv_head * c.group + row) * a.q_strides[1];
  memset(q, 0, sizeof(int16_t) * R * stride);
  for (int r = 0; r < R; r++, from += a.q_strides[1]) q_step[r] = round_query(from, D, q + r * stride) * a.scale;

  // As in decode_span: the keys, the last one again up to whole vectors of scores, and the first values.
  const int8_t* key[kSpan + kAheadKeys];
  const int64_t to_value = a.kv_heads * plane_of<int8_t>(a);
  const Cursor<int8_t> first = Cursor<int8_t>::at(a, item.sequence, item.kv_head, 0, item.key0);
  Cursor<int8_t> cursor = first;
  for (int64_t i = 0; i < keys; i++) {
    key[i] = cursor.here();
    if (i < kAheadKeys) prefetch(key[i], D);
    if (i == 0 || cursor.offset == 0) {  // scales are asked for here, and read when the scores are there
      prefetch(cursor.scale(), sizeof(float) * a.block_size);
      prefetch((const int8_t*)cursor.scale() + to_value, sizeof(float) * a.block_size);
    }
    if (i + 1 < keys) cursor.next();
  }
  for (int64_t i = keys; i < padded_keys; i++) key[i] = key[keys - 1];
  for (int64_t i = 0; i < kAheadKeys; i++) key[padded_keys + i] = key[least(i, keys - 1)] + to_value;

  constexpr int J = R <= 2 ? 4 : 2;  // keys at a time: R*J accumulators
  for (int64_t i = 0; i < padded_keys; i += kLanes) {
    vi dot[R][kLanes];
    PLLM_UNROLL for (int j = 0; j < kLanes; j += J) {
      vi acc[R][J];
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int l = 0; l < J; l++) acc[r][l] = set_all(0);
      for (int64_t d = 0; d < whole; d += kWords) {
        PLLM_UNROLL for (int l = 0; l < J; l++) {
          if (d % kLine == 0) prefetch(key[i + j + l + kAheadKeys] + d, 1);
          const vi x = widen(key[i + j + l] + d);
          PLLM_UNROLL for (int r = 0; r < R; r++) acc[r][l] = multiply_add_words(acc[r][l], x, load_whole(q + r * stride + d));
        }
      }
      if (whole < D) {
        PLLM_UNROLL for (int l = 0; l < J; l++) {
          if (whole % kLine == 0) prefetch(key[i + j + l + kAheadKeys] + whole, 1);
          const vi x = widen_first(key[i + j + l] + whole, D - whole);
          PLLM_UNROLL for (int r = 0; r < R; r++)
              acc[r][l] = multiply_add_words(acc[r][l], x, load_whole(q + r * stride + whole));
        }
      }
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int l = 0; l < J; l++) dot[r][j + l] = acc[r][l];
    }
    PLLM_UNROLL for (int r = 0; r < R; r++) store(s + r * kSpan + i, to_float(sum_each(dot[r])));
  }

  float key_scale[kSpan], value_scale[kSpan];
  cursor = first;
  for (int64_t i = 0; i < keys;) {  // a block's scales lie beside each other
    const int64_t run = least(keys - i, a.block_size - cursor.offset);
    memcpy(key_scale + i, cursor.scale(), sizeof(float) * run);
    memcpy(value_scale + i, (const int8_t*)cursor.scale() + to_value, sizeof(float) * run);
    i += run, cursor.index++, cursor.offset = 0;
  }
  for (int64_t i = keys; i < padded_keys; i++) key_scale[i] = value_scale[i] = 0;

  constexpr int64_t kRuns = kSpan / kRun;
  float maximum[R], sum[R], step[kRuns][R];
  for (int r = 0; r < R; r++) {  // each step for all rows, so that none waits for another's reductions
    float* row_s = s + r * kSpan;
    const vf by = set1(q_step[r]);
    for (int64_t i = 0; i < padded_keys; i += kLanes) store(row_s + i, mul(load(row_s + i), mul(load(key_scale + i), by)));
    if (a.softcap > 0) soft_cap(row_s, padded_keys, a.softcap);
    for (int64_t i = keys; i < padded_keys; i++) row_s[i] = -INFINITY;
    maximum[r] = largest_score(row_s, padded_keys);
  }
  const int64_t runs = (keys + kRun - 1) / kRun, each = (kAheadValues - kAheadKeys + R * runs - 1) / (R * runs);
  int64_t asked = kAheadKeys;  // values
  for (int r = 0; r < R; r++) {
    vf total = zero();
    for (int64_t i = 0; i < keys; i += kRun) {
      for (const int64_t end = least(keys, asked + each); asked < end; asked++) prefetch(key[asked] + to_value, D);
      step[i / kRun][r] = weigh(s + r * kSpan + i, least(padded_keys - i, kRun), maximum[r], value_scale + i, &total);
    }
    sum[r] = reduce_add(total);
  }
  for (int r = 0; r < R; r++) {
    for (int64_t i = 0; i < keys; i += kRun) {
      float& of = step[i / kRun][r];
      of = round_weights(s + r * kSpan + i, least(padded_keys - i, kRun), of, weight + r * kSpan + i);
    }
  }

  // kWords of head_dim at a time: R*2*C accumulators.
  constexpr int C = kLanes == 16 ? (R <= 2 ? 4 : 2) : (R == 1 ? 4 : R == 2 ? 2 : 1);
  for (int64_t i = 0; i < keys; i += kRun) {
    const int64_t end = least(keys, i + kRun);
    const float* by = step[i / kRun];
    for (int64_t d = 0; d < whole;) {
      if (whole - d >= C * kWords)
        weighted_words<R, C>(weight, key, to_value, i, end, keys, d, 0, by, o, c.padded), d += C * kWords;
      else
        weighted_words<R, 1>(weight, key, to_value, i, end, keys, d, 0, by, o, c.padded), d += kWords;
    }
    if (whole < D) weighted_words<R, 1>(weight, key, to_value, i, end, keys, whole, D - whole, by, o, c.padded);
  }
  for (int r = 0; r < R; r++) emit(c, item, row + r, maximum[r], sum[r], o + r * c.padded);
}

}  // namespace

}  // namespace PLLM_ISA
}  // namespace pllm
