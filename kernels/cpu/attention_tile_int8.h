// Attention of many query rows over an int8 pool, in whole numbers: gathered keys and values are words of 16 bits, queries and
// weights are rounded to such (attention_weights.h). Included by attention.cpp only.
//
// Weights are made beside the largest score among the gathered keys, not among all so far; what they make is added to what earlier
// keys made by factors in float32.
#pragma once

#include <string.h>

#include "attention_tile.h"
#include "attention_weights.h"
#include "simd.h"
#include "words.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int kParts = (int)kPanel / (2 * kLanes);  // of a panel, each two vectors of sums
static_assert(kKeys <= kMostProducts, "a sum of weighted values would overflow");

// acc[R][2] = A[R][pairs of words] x two vectors of B [pairs][kPanel][2].
template <int R, int STRIDE>
PLLM_INLINE void multiply_words(const int16_t* a, const int16_t* b, int64_t pairs, vi acc[R][2]) {
  PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int v = 0; v < 2; v++) acc[r][v] = set_all(0);
  for (int64_t i = 0; i < pairs; i++, a += 2, b += 2 * kPanel) {
    const vi x[2] = {load_whole(b), load_whole(b + kWords)};
    PLLM_UNROLL for (int r = 0; r < R; r++) {
      const vi pair = set_pair(a + r * STRIDE);
      PLLM_UNROLL for (int v = 0; v < 2; v++) acc[r][v] = multiply_add_words(acc[r][v], x[v], pair);
    }
  }
}

struct Int8Tile {
  static constexpr int64_t kQueryWords = kMaxHeadDim + 32;  // of a query row: constant, so that rows are reached by offsets

  int16_t *q, *k, *v;  // q [rows][kQueryWords]; k [kKeys/32][D/2][32][2]; v [padded/32][kKeys/2][32][2]
  float *s, *key_scale, *value_scale;  // s [rows][kKeys]; a scale a gathered key
  int16_t* weight;                     // [rows][kKeys]
  float *o, *maximum, *sum, *q_step;   // o [rows][padded]

  static int64_t floats(const Call& c) {
    const int64_t room = most(kQueryRows, c.group);
    return (c.a->head_dim + c.padded) * kKeys / 2 + room * (c.padded + kQueryWords / 2 + 3) + kTileRows * kKeys * 3 / 2 + 2 * kKeys;
  }
  void place(const Call& c, float* work) {
    const int64_t room = most(kQueryRows, c.group);
    k = (int16_t*)work;
    v = k + c.a->head_dim * kKeys;
    weight = v + c.padded * kKeys;
    q = weight + kTileRows * kKeys;
    s = (float*)(q + room * kQueryWords);
    key_scale = s + kTileRows * kKeys;
    value_scale = key_scale + kKeys;
    o = value_scale + kKeys;
    maximum = o + room * c.padded;
    sum = maximum + room;
    q_step = sum + room;
  }
  void take_query(const Call& c, int64_t row, const float* from) const {
    q_step[row] = round_query(from, c.a->head_dim, q + row * kQueryWords) * c.a->scale;
  }

  void gather(const Call& c, const Item& item, int64_t key0, int64_t key1) const;

  // Rows row..row+R against the gathered keys key0..key1.
  template <int R>
  void attend(const Call& c, const Item& item, int64_t row, int64_t key0, int64_t key1) const;
};

// Zeros beyond the last key, so that nothing unwritten is ever read.
void Int8Tile::gather(const Call& c, const Item& item, int64_t key0, int64_t key1) const {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, n = key1 - key0, columns = round_up(n, kPanel);
  Cursor<int8_t> keys = Cursor<int8_t>::at(a, item.sequence, item.kv_head, 0, key0);
  Cursor<int8_t> values = Cursor<int8_t>::at(a, item.sequence, item.kv_head, 1, key0);
  for (int64_t i = 0; i < columns; i += kLanes) {
    const int8_t* key[kLanes];
    for (int j = 0; j < kLanes; j++) {
      key[j] = i + j < n ? keys.here() : nullptr;
      key_scale[i + j] = key[j] ? *keys.scale() : 0;
      if (i + j + 1 < n) keys.next();
    }
    int16_t* to = k + i / kPanel * kPanel * D + i % kPanel * 2;
    for (int64_t d = 0; d < D; d += 4 * kLanes, to += 4 * kLanes * kPanel) {  // fours of bytes, moved as floats are
      vf quads[kLanes];
      PLLM_UNROLL for (int j = 0; j < kLanes; j++)
          quads[j] = key[j] ? load_first((const float*)(key[j] + d), (D - d) / 4) : zero();
      transpose(quads);
      PLLM_UNROLL for (int j = 0; j < kLanes; j++) {
        if (d + 4 * j >= D) break;
        vi first, last;
        widen_quads(as_whole(quads[j]), &first, &last);
        store_whole(to + 2 * j * 2 * kPanel, first);
        store_whole(to + (2 * j + 1) * 2 * kPanel, last);
      }
    }
  }
  for (int64_t i = 0; i < columns; i += 2) {
    const int8_t* value[2];
    for (int j = 0; j < 2; j++) {
      value[j] = i + j < n ? values.here() : nullptr;
      value_scale[i + j] = value[j] ? *values.scale() : 0;
      if (i + j + 1 < n) values.next();
    }
    for (int64_t d = 0; d < c.padded; d += 16) {
      __m128i x[2];
      PLLM_UNROLL for (int j = 0; j < 2; j++) {
        const __m128i* from = (const __m128i*)(value[j] + d);
        x[j] = !value[j] || d >= D ? _mm_setzero_si128() : d + 16 <= D ? _mm_loadu_si128(from) : _mm_loadl_epi64(from);
      }
      int16_t* to = v + d / kPanel * kPanel * kKeys + i * kPanel + d % kPanel * 2;
      _mm256_storeu_si256((__m256i*)to, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x[0], x[1])));
      _mm256_storeu_si256((__m256i*)(to + 16), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x[0], x[1])));
    }
  }
}

template <int R>
void Int8Tile::attend(const Call& c, const Item& item, int64_t row, int64_t key0, int64_t key1) const {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, n = keys_seen(c, item, row, R, key0, key1), columns = round_up(n, kPanel);
  if (!n) return;
  for (int64_t p = 0; p < columns; p += kPanel) {
    for (int part = 0; part < kParts; part++) {
      vi acc[R][2];
      multiply_words<R, kQueryWords>(q + row * kQueryWords, k + p * D + part * 2 * kWords, D / 2, acc);
      PLLM_UNROLL for (int i = 0; i < 2; i++) {
        const int64_t column = p + (part * 2 + i) * kLanes;
        const vf scale = load(key_scale + column);
        PLLM_UNROLL for (int r = 0; r < R; r++)
            store(s + r * kKeys + column, mul(to_float(acc[r][i]), mul(scale, set1(q_step[row + r]))));
      }
    }
  }

  // Each step for all rows, so that none waits for another's reductions. A row that sees none of these keys has no weights.
  static_assert(kTileRows <= kLanes, "a lane a row");
  float largest[R], old_factor[kLanes] = {0}, new_factor[kLanes] = {0}, step[R];
  for (int r = 0; r < R; r++) {
    float* row_s = s + r * kKeys;
    if (a.softcap > 0) soft_cap(row_s, columns, a.softcap);
    if (!hide(c, item, row + r, key0, n, columns, row_s)) {
      largest[r] = 0, new_factor[r] = -INFINITY;
      continue;
    }
    largest[r] = largest_score(row_s, columns);
    const float before = maximum[row + r], now = !(largest[r] <= before) ? largest[r] : before;  // a NaN is in its factor, too
    old_factor[r] = before - now, new_factor[r] = largest[r] - now;
    maximum[row + r] = now;
  }
  store(old_factor, exp(load(old_factor)));
  store(new_factor, exp(load(new_factor)));
  for (int r = 0; r < R; r++) {
    vf total = zero();
    step[r] = weigh(s + r * kKeys, columns, largest[r], value_scale, &total);
    sum[row + r] = sum[row + r] * old_factor[r] + reduce_add(total) * new_factor[r];
  }
  for (int r = 0; r < R; r++) step[r] = round_weights(s + r * kKeys, columns, step[r], weight + r * kKeys) * new_factor[r];

  float* to = o + row * c.padded;
  for (int64_t d = 0; d < c.padded; d += kPanel) {
    for (int part = 0; part < kParts; part++) {
      vi acc[R][2];
      multiply_words<R, kKeys>(weight, v + d * kKeys + part * 2 * kWords, (n + 1) / 2, acc);
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int i = 0; i < 2; i++) {
        float* at = to + r * c.padded + d + (part * 2 + i) * kLanes;
        store(at, fmadd(to_float(acc[r][i]), set1(step[r]), mul(load(at), set1(old_factor[r]))));
      }
    }
  }
}

}  // namespace

}  // namespace PLLM_ISA
}  // namespace pllm
