// What every way of attending shares: an item of the work, where its keys lie in the pool, how a row of it ends.
// Included by attention.cpp only.
#pragma once

#include <string.h>

#include "kernels.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kPanel = 32;
constexpr int64_t kQueryRows = 96;  // rows of a query tile: tokens x heads of the group
constexpr int64_t kSpan = 512;      // keys of a span, where a tile's keys are cut
constexpr int64_t kMaxHeadDim = 512;

struct Item {
  int32_t sequence, kv_head, token0, token1;  // query tokens, within the sequence
  int64_t key0, key1;                         // keys, within the sequence
  float* partial;                             // null: the item is the whole row set, written to out
};

struct Call {
  const PllmPagedAttention* a;
  int64_t group, padded, row_floats;  // query heads per kv head; head_dim up to whole panels; floats of a partial row
};

PLLM_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
PLLM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
PLLM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
constexpr bool kScaled = false;  // whether the pool has a scale beside each key and value
template <>
constexpr bool kScaled<int8_t> = true;

// Elements of one block's keys, or values, of one head.
template <class T>
int64_t plane_of(const PllmPagedAttention& a) {
  return a.block_size * (a.head_dim + (kScaled<T> ? (int64_t)(sizeof(float) / sizeof(T)) : 0));
}

// Walks the cache of one sequence, kv head and kind (0 keys, 1 values), token by token.
template <class T>
struct Cursor {
  const T* base;
  const int32_t* blocks;
  int64_t block_stride, block_size, head_dim, index, offset;

  static Cursor at(const PllmPagedAttention& a, int64_t sequence, int64_t head, int kind, int64_t token) {
    Cursor c;
    c.head_dim = a.head_dim;
    c.block_size = a.block_size;
    const int64_t plane = plane_of<T>(a);
    c.block_stride = a.num_layers * 2 * a.kv_heads * plane;
    c.base = (const T*)a.kv + ((a.layer * 2 + kind) * a.kv_heads + head) * plane;
    c.blocks = a.block_table + sequence * a.table_width;
    c.index = token / a.block_size;
    c.offset = token % a.block_size;
    return c;
  }
  const T* block() const { return base + blocks[index] * block_stride; }
  const T* here() const { return block() + offset * head_dim; }
  const float* scale() const { return (const float*)(block() + block_size * head_dim) + offset; }
  void next() {
    if (++offset == block_size) offset = 0, index++;
  }
};

// Scores -> logits, in place: soft cap.
PLLM_INLINE void soft_cap(float* s, int64_t n, float cap) {
  const vf c = set1(cap), inverse = set1(1.0f / cap);
  for (int64_t i = 0; i < n; i += kLanes) store(s + i, mul(c, tanh(mul(load(s + i), inverse))));
}

// Ends a row: folds the sink into the denominator, divides, writes.
void finish(const PllmPagedAttention& a, int64_t head, float maximum, float sum, const float* o, float* out) {
  float scale = 1.0f;
  if (a.sinks) {
    float e[kLanes] = {0};
    const float sink = a.sinks[head], top = maximum > sink ? maximum : sink;
    e[0] = maximum - top;
    e[1] = sink - top;
    store(e, exp(load(e)));
    scale = e[0];
    sum = sum * e[0] + e[1];
  }
  scale /= sum;
  int64_t d = 0;
  for (; d + kLanes <= a.head_dim; d += kLanes) store(out + d, mul(load(o + d), set1(scale)));
  if (d < a.head_dim) store_first(out + d, mul(load(o + d), set1(scale)), a.head_dim - d);
}

// A row of an item: to out, or to the item's partials.
PLLM_INLINE void emit(const Call& c, const Item& item, int64_t row, float maximum, float sum, const float* o) {
  const PllmPagedAttention& a = *c.a;
  const int64_t token = item.token0 + row / c.group, head = item.kv_head * c.group + row % c.group;
  if (item.partial) {
    float* to = item.partial + row * c.row_floats;
    memcpy(to, o, sizeof(float) * c.padded);
    to[c.padded] = maximum;
    to[c.padded + 1] = sum;
  } else {
    finish(a, head, maximum, sum, o, a.out + ((a.query_start[item.sequence] + token) * a.heads + head) * a.head_dim);
  }
}

}  // namespace

}  // namespace PLLM_ISA
}  // namespace pllm
