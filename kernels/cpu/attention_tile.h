// Attention of many query rows: keys are gathered for all of them. Included by attention.cpp only. What is done with them, and in
// what numbers, is a kind of tile's: WideTile here, Int8Tile in attention_tile_int8.h.
#pragma once

#include <string.h>

#include "attention_item.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kGroups = 16 / kLanes;
constexpr int64_t kTileRows = kLanes == 16 ? 12 : 6;  // rows of one register tile
constexpr int64_t kKeys = 128;                        // keys gathered at a time
constexpr int64_t kQueryStride = kMaxHeadDim + 16;    // of a query row: constant, so that rows are reached by offsets

// C[R][32] from A (AK, AR: strides of k and of rows) and B[k][32]; added to C where `more`.
template <int R, int AK, int AR>
PLLM_INLINE void product(const float* a, const float* b, int64_t k, bool more, float* to, int64_t stride) {
  constexpr int G = kGroups == 1 || R > 3 ? 1 : 2;
  for (int g0 = 0; g0 < kGroups; g0 += G) {
    vf acc[R][2 * G];
    PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int i = 0; i < 2 * G; i++) {
      const int col = (g0 + i / 2) * kLanes + (i & 1) * 16;
      acc[r][i] = more ? load(to + r * stride + col) : zero();
    }
    const char* ahead = nullptr;
    multiply<R, G, AK, AR, 0>(a, b + g0 * kLanes, k, acc, ahead, 0);
    PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int i = 0; i < 2 * G; i++)
        store(to + r * stride + (g0 + i / 2) * kLanes + (i & 1) * 16, acc[r][i]);
  }
}

// How many of the gathered keys from key0 on `count` rows from `row` look at; 0: none.
PLLM_INLINE int64_t keys_seen(const Call& c, const Item& item, int64_t row, int64_t count, int64_t key0, int64_t key1) {
  const PllmPagedAttention& a = *c.a;
  const int64_t start = a.context_len[item.sequence] - (a.query_start[item.sequence + 1] - a.query_start[item.sequence]);
  const int64_t last = start + item.token0 + (row + count - 1) / c.group;  // position of the last row's query
  const int64_t first_needed = a.sliding_window ? start + item.token0 + row / c.group - a.sliding_window + 1 : 0;
  return key1 <= first_needed ? 0 : most(0, least(key1, last + 1) - key0);
}

// Of a row's scores against n keys from key0 on, and zeros up to `columns`: those that it does not see become -infinity. Whether
// it sees any.
PLLM_INLINE bool hide(const Call& c, const Item& item, int64_t row, int64_t key0, int64_t n, int64_t columns, float* s) {
  const PllmPagedAttention& a = *c.a;
  const int64_t start = a.context_len[item.sequence] - (a.query_start[item.sequence + 1] - a.query_start[item.sequence]);
  const int64_t position = start + item.token0 + row / c.group;
  const int64_t high = least(n, position + 1 - key0);
  const int64_t low = a.sliding_window ? most(0, position - a.sliding_window + 1 - key0) : 0;
  for (int64_t i = 0; i < low && i < columns; i++) s[i] = -INFINITY;
  for (int64_t i = most(high, 0); i < columns; i++) s[i] = -INFINITY;
  return low < high;
}

// A query tile in float32.
struct WideTile {
  float *q, *k, *v, *s;      // q [rows][kQueryStride]; k [kKeys/32][D][32]; v [padded/32][kKeys][32]; s [rows][kKeys]
  float *o, *maximum, *sum;  // o [rows][padded]

  static int64_t floats(const Call& c) {
    const int64_t room = most(kQueryRows, c.group);
    return (c.a->head_dim + c.padded) * kKeys + room * (c.padded + kQueryStride + 2) + kTileRows * kKeys;
  }
  void place(const Call& c, float* work) {
    const int64_t room = most(kQueryRows, c.group);
    k = work;
    v = k + c.a->head_dim * kKeys;
    o = v + c.padded * kKeys;
    s = o + room * c.padded;
    q = s + kTileRows * kKeys;
    maximum = q + room * kQueryStride;
    sum = maximum + room;
  }
  void take_query(const Call& c, int64_t row, const float* from) const {
    for (int64_t d = 0; d < c.a->head_dim; d++) q[row * kQueryStride + d] = from[d] * c.a->scale;
  }

  // Rows row..row+R against the gathered keys key0..key1.
  template <int R>
  void attend(const Call& c, const Item& item, int64_t row, int64_t key0, int64_t key1) const;
};

template <int R>
void WideTile::attend(const Call& c, const Item& item, int64_t row, int64_t key0, int64_t key1) const {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, n = keys_seen(c, item, row, R, key0, key1), columns = round_up(n, kPanel);
  if (!n) return;
  for (int64_t p = 0; p < columns; p += kPanel)
    product<R, 1, kQueryStride>(q + row * kQueryStride, k + p * D, D, false, s + p, kKeys);
  float* to = o + row * c.padded;
  for (int r = 0; r < R; r++) {
    float* row_s = s + r * kKeys;
    if (a.softcap > 0) soft_cap(row_s, columns, a.softcap);
    hide(c, item, row + r, key0, n, columns, row_s);
    vf top = set1(maximum[row + r]);
    for (int64_t i = 0; i < columns; i += kLanes) top = max(top, load(row_s + i));
    const float before = maximum[row + r], now = reduce_max(top);
    if (now == -INFINITY) {  // nothing seen yet
      for (int64_t i = 0; i < columns; i += kLanes) store(row_s + i, zero());
      continue;
    }
    const vf m = set1(now);
    vf total = zero();
    for (int64_t i = 0; i < columns; i += kLanes) {
      const vf p = exp(sub(load(row_s + i), m));
      store(row_s + i, p);
      total = add(total, p);
    }
    if (now != before) {
      float e[kLanes] = {0};
      e[0] = before - now;
      store(e, exp(load(e)));
      sum[row + r] *= e[0];
      const vf scale = set1(e[0]);
      for (int64_t d = 0; d < c.padded; d += kLanes) store(to + r * c.padded + d, mul(load(to + r * c.padded + d), scale));
      maximum[row + r] = now;
    }
    sum[row + r] += reduce_add(total);
  }
  for (int64_t d = 0; d < c.padded; d += kPanel) product<R, 1, kKeys>(s, v + d * kKeys, n, true, to + d, c.padded);
}

PLLM_INLINE vf load_some(const float* p, int64_t n) { return load_first(p, n); }
template <class T>
PLLM_INLINE vf load_some(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T row[kLanes] = {0};
  for (int64_t i = 0; i < n; i++) row[i] = p[i];
  return load(row);
}

// WideTile, gathered from a pool of T.
template <class T>
struct FloatTile : WideTile {
  void gather(const Call& c, const Item& item, int64_t key0, int64_t key1) const;
};

// Keys transposed to [d][key], values as they are; zeros beyond the last key, so that nothing unwritten is ever read.
template <class T>
void FloatTile<T>::gather(const Call& c, const Item& item, int64_t key0, int64_t key1) const {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, n = key1 - key0, columns = round_up(n, kPanel);
  Cursor<T> keys = Cursor<T>::at(a, item.sequence, item.kv_head, 0, key0);
  Cursor<T> values = Cursor<T>::at(a, item.sequence, item.kv_head, 1, key0);
  for (int64_t i = 0; i < columns; i += kLanes) {
    const T* key[kLanes];
    for (int j = 0; j < kLanes; j++) {
      key[j] = i + j < n ? keys.here() : nullptr;
      if (i + j + 1 < n) keys.next();
    }
    for (int64_t d = 0; d < D; d += kLanes) {
      vf block[kLanes];
      PLLM_UNROLL for (int j = 0; j < kLanes; j++) block[j] = key[j] ? load_some(key[j] + d, D - d) : zero();
      transpose(block);
      float* to = k + i / kPanel * kPanel * D + i % kPanel + d * kPanel;
      PLLM_UNROLL for (int j = 0; j < kLanes; j++)
        if (d + j < D) store(to + j * kPanel, block[j]);
    }
  }
  for (int64_t i = 0; i < columns; i++) {
    const T* value = i < n ? values.here() : nullptr;
    if (i + 1 < n) values.next();
    for (int64_t d = 0; d < c.padded; d += kLanes)
      store(v + d / kPanel * kPanel * kKeys + i * kPanel + d % kPanel, value && d < D ? load_some(value + d, D - d) : zero());
  }
}

template <class Tile>
void attend_rows(int64_t rows, const Tile& tile, const Call& c, const Item& item, int64_t row, int64_t key0, int64_t key1) {
  switch (rows) {
#define PLLM_ROWS(R) \
  case R:            \
    return tile.template attend<R>(c, item, row, key0, key1);
    PLLM_ROWS(1)
    PLLM_ROWS(2)
    PLLM_ROWS(3)
    PLLM_ROWS(4)
    PLLM_ROWS(5)
    PLLM_ROWS(6)
#if defined(__AVX512F__)
    PLLM_ROWS(7)
    PLLM_ROWS(8)
    PLLM_ROWS(9)
    PLLM_ROWS(10)
    PLLM_ROWS(11)
    PLLM_ROWS(12)
#endif
#undef PLLM_ROWS
  }
}

// A tile of query tokens over a span of keys, by a kind of tile.
template <class Tile>
void tile_span(const Call& c, const Item& item, float* work) {
  const PllmPagedAttention& a = *c.a;
  const int64_t rows = (item.token1 - item.token0) * c.group, tiles = (rows + kTileRows - 1) / kTileRows;
  Tile tile;
  tile.place(c, work);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t token = a.query_start[item.sequence] + item.token0 + r / c.group;
    tile.take_query(c, r, a.q + token * a.q_strides[0] + (item.kv_head * c.group + r % c.group) * a.q_strides[1]);
    tile.maximum[r] = -INFINITY, tile.sum[r] = 0;
  }
  memset(tile.o, 0, sizeof(float) * rows * c.padded);
  for (int64_t key0 = item.key0; key0 < item.key1; key0 += kKeys) {
    const int64_t key1 = least(item.key1, key0 + kKeys);
    tile.gather(c, item, key0, key1);
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t row0 = rows * t / tiles;
      attend_rows(rows * (t + 1) / tiles - row0, tile, c, item, row0, key0, key1);
    }
  }
  for (int64_t r = 0; r < rows; r++) emit(c, item, r, tile.maximum[r], tile.sum[r], tile.o + r * c.padded);
}

}  // namespace

}  // namespace PLLM_ISA
}  // namespace pllm
