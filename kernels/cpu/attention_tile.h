// Attention of many query rows: keys are gathered for all of them. Included by attention.cpp only.
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

struct Tile {
  float *q, *k, *v, *s, *o, *maximum, *sum;  // q [rows][kQueryStride]; k [kKeys/32][D][32]; v [padded/32][kKeys][32]; s [rows][kKeys]
};

int64_t tile_floats(const Call& c) {
  const int64_t room = most(kQueryRows, c.group);
  return (c.a->head_dim + c.padded) * kKeys + room * (c.padded + kQueryStride + 2) + kTileRows * kKeys;
}

// Rows row..row+R of a query tile against the gathered keys key0..key1.
template <int R>
void tile_rows(const Call& c, const Item& item, const Tile& w, int64_t row, int64_t key0, int64_t key1) {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim;
  const int64_t start = a.context_len[item.sequence] - (a.query_start[item.sequence + 1] - a.query_start[item.sequence]);
  const int64_t last = start + item.token0 + (row + R - 1) / c.group;  // position of the last row's query
  const int64_t seen = least(key1, last + 1);
  if (seen <= key0) return;
  if (a.sliding_window) {
    const int64_t first_needed = start + item.token0 + row / c.group - a.sliding_window + 1;
    if (key1 <= first_needed) return;
  }
  const int64_t n = seen - key0, columns = round_up(n, kPanel);
  for (int64_t p = 0; p < columns; p += kPanel) product<R, 1, kQueryStride>(w.q + row * kQueryStride, w.k + p * D, D, false, w.s + p, kKeys);
  float* o = w.o + row * c.padded;
  for (int r = 0; r < R; r++) {
    float* s = w.s + r * kKeys;
    if (a.softcap > 0) soft_cap(s, columns, a.softcap);
    const int64_t position = start + item.token0 + (row + r) / c.group;
    const int64_t high = least(n, position + 1 - key0);
    const int64_t low = a.sliding_window ? most(0, position - a.sliding_window + 1 - key0) : 0;
    for (int64_t i = 0; i < low && i < columns; i++) s[i] = -INFINITY;
    for (int64_t i = most(high, 0); i < columns; i++) s[i] = -INFINITY;
    vf top = set1(w.maximum[row + r]);
    for (int64_t i = 0; i < columns; i += kLanes) top = max(top, load(s + i));
    const float before = w.maximum[row + r], now = reduce_max(top);
    if (now == -INFINITY) {  // nothing seen yet
      for (int64_t i = 0; i < columns; i += kLanes) store(s + i, zero());
      continue;
    }
    const vf m = set1(now);
    vf total = zero();
    for (int64_t i = 0; i < columns; i += kLanes) {
      const vf p = exp(sub(load(s + i), m));
      store(s + i, p);
      total = add(total, p);
    }
    if (now != before) {
      float e[kLanes] = {0};
      e[0] = before - now;
      store(e, exp(load(e)));
      w.sum[row + r] *= e[0];
      const vf scale = set1(e[0]);
      for (int64_t d = 0; d < c.padded; d += kLanes) store(o + r * c.padded + d, mul(load(o + r * c.padded + d), scale));
      w.maximum[row + r] = now;
    }
    w.sum[row + r] += reduce_add(total);
  }
  for (int64_t d = 0; d < c.padded; d += kPanel) product<R, 1, kKeys>(w.s, w.v + d * kKeys, n, true, o + d, c.padded);
}

void tile_rows_of(int64_t rows, const Call& c, const Item& item, const Tile& w, int64_t row, int64_t key0, int64_t key1) {
  switch (rows) {
#define PLLM_ROWS(R) \
  case R:            \
    return tile_rows<R>(c, item, w, row, key0, key1);
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

PLLM_INLINE vf load_some(const float* p, int64_t n) { return load_first(p, n); }
template <class T>
PLLM_INLINE vf load_some(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T row[kLanes] = {0};
  for (int64_t i = 0; i < n; i++) row[i] = p[i];
  return load(row);
}
// Of a key or value: its elements from p on, as they count.
template <class T>
PLLM_INLINE vf load_scaled(const T* p, int64_t n, float scale) {
  if constexpr (kScaled<T>) return mul(load_some(p, n), set1(scale));
  else return load_some(p, n);
}

// Keys transposed to [d][key], values as they are; zeros beyond the last key, so that nothing unwritten is ever read.
template <class T>
void gather(const Call& c, const Item& item, int64_t key0, int64_t key1, const Tile& w) {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, n = key1 - key0, columns = round_up(n, kPanel);
  Cursor<T> k = Cursor<T>::at(a, item.sequence, item.kv_head, 0, key0), v = Cursor<T>::at(a, item.sequence, item.kv_head, 1, key0);
  for (int64_t i = 0; i < columns; i += kLanes) {
    const T* key[kLanes];
    float scale[kLanes];
    for (int j = 0; j < kLanes; j++) {
      key[j] = i + j < n ? k.here() : nullptr;
      scale[j] = kScaled<T> && key[j] ? *k.scale() : 1.0f;
      if (i + j + 1 < n) k.next();
    }
    for (int64_t d = 0; d < D; d += kLanes) {
      vf block[kLanes];
      PLLM_UNROLL for (int j = 0; j < kLanes; j++) block[j] = key[j] ? load_scaled(key[j] + d, D - d, scale[j]) : zero();
      transpose(block);
      float* to = w.k + i / kPanel * kPanel * D + i % kPanel + d * kPanel;
      PLLM_UNROLL for (int j = 0; j < kLanes; j++)
        if (d + j < D) store(to + j * kPanel, block[j]);
    }
  }
  for (int64_t i = 0; i < columns; i++) {
    const T* value = i < n ? v.here() : nullptr;
    const float scale = kScaled<T> && value ? *v.scale() : 1.0f;
    if (i + 1 < n) v.next();
    for (int64_t d = 0; d < c.padded; d += kLanes)
      store(w.v + d / kPanel * kPanel * kKeys + i * kPanel + d % kPanel, value && d < D ? load_scaled(value + d, D - d, scale) : zero());
  }
}

template <class T>
void tile_span(const Call& c, const Item& item, float* work) {
  const PllmPagedAttention& a = *c.a;
  const int64_t D = a.head_dim, rows = (item.token1 - item.token0) * c.group;
  const int64_t room = most(kQueryRows, c.group);
  Tile w;
  w.k = work;
  w.v = w.k + D * kKeys;
  w.o = w.v + c.padded * kKeys;
  w.s = w.o + room * c.padded;
  w.q = w.s + kTileRows * kKeys;
  w.maximum = w.q + room * kQueryStride;
  w.sum = w.maximum + room;

  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t token = a.query_start[item.sequence] + item.token0 + r / c.group;
    const float* from = a.q + token * a.q_strides[0] + (item.kv_head * c.group + r % c.group) * a.q_strides[1];
    for (int64_t d = 0; d < D; d++) w.q[r * kQueryStride + d] = from[d] * a.scale;
  }
  for (int64_t r = 0; r < rows; r++) w.maximum[r] = -INFINITY, w.sum[r] = 0;
  memset(w.o, 0, sizeof(float) * rows * c.padded);
  for (int64_t key0 = item.key0; key0 < item.key1; key0 += kKeys) {
    const int64_t key1 = least(item.key1, key0 + kKeys);
    gather<T>(c, item, key0, key1, w);
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t row0 = rows * t / tiles;
      tile_rows_of(rows * (t + 1) / tiles - row0, c, item, w, row0, key0, key1);
    }
  }
  for (int64_t r = 0; r < rows; r++) emit(c, item, r, w.maximum[r], w.sum[r], w.o + r * c.padded);
}

}  // namespace

}  // namespace PLLM_ISA
}  // namespace pllm
