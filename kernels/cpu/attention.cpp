// Paged attention: writes this step's keys and values into the pool, then attends over it.
//
// A sequence's work is cut into items (kv head, tile of query tokens, span of keys), by its own lengths only, so a row's result
// does not depend on its neighbours. Short tiles cut their keys into spans (Flash-Decoding) so that one long sequence keeps
// all cores busy; the spans' partial softmaxes are then merged in order. Two ways through an item:
//   decode_span: few query rows. Keys are read where they lie; dot products over head_dim.
//   tile_span:   many query rows. Keys are gathered and transposed, values gathered, 128 at a time, and two dense products
//                around an online softmax (FlashAttention, Dao et al. 2022) share them.
//
// In an int8 pool the keys of a block and head are followed by their scales, a float each, and the values likewise. Keys and values
// are widened on the way to the registers. In decode_span scales meet what is made of them, a score and a weight of the softmax,
// not their elements; tile_span scales what it gathers.
#include <string.h>

#include "kernels.h"
#include "rounding.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kPanel = 32, kGroups = 16 / kLanes;
constexpr int64_t kTileRows = kLanes == 16 ? 12 : 6;  // rows of one register tile
constexpr int64_t kQueryRows = 96;                    // rows of a query tile: tokens x heads of the group
constexpr int64_t kKeys = 128;                        // keys gathered at a time
constexpr int64_t kSpan = 512;                        // keys of a span, where a tile's keys are cut
constexpr int64_t kDecodeRows = 4;                    // up to here keys are read in place
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kWrittenHeads = 4, kMergedItems = 16;  // in a piece of a loop
constexpr int64_t kQueryStride = kMaxHeadDim + 16;  // of a query row: constant, so that rows are reached by offsets

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

PLLM_INLINE uint16_t to_bfloat16(float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}
PLLM_INLINE void narrow(const float* from, float* to, int64_t n) { memcpy(to, from, sizeof(float) * n); }
PLLM_INLINE void narrow(const float* from, uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] = to_bfloat16(from[i]);
}
template <class T>
constexpr bool kMixes = false;  // whether load_two changes the order of elements
template <>
constexpr bool kMixes<uint16_t> = true;
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

// This step's keys and values of one sequence and kv head.
template <class T>
void write_cache(const PllmPagedAttention& a, int64_t b, int64_t h) {
  const int64_t tokens = a.query_start[b + 1] - a.query_start[b], start = a.context_len[b] - tokens;
  if (!tokens) return;
  for (int kind = 0; kind < 2; kind++) {
    const float* from = (kind ? a.v : a.k);
    const int64_t* strides = kind ? a.v_strides : a.k_strides;
    from += a.query_start[b] * strides[0] + h * strides[1];
    Cursor<T> to = Cursor<T>::at(a, b, h, kind, start);
    for (int64_t t = 0; t < tokens; t++) {
      if constexpr (kScaled<T>)
        round_row(from + t * strides[0], a.head_dim, const_cast<T*>(to.here()), const_cast<float*>(to.scale()));
      else
        narrow(from + t * strides[0], const_cast<T*>(to.here()), a.head_dim);
      if (t + 1 < tokens) to.next();  // the table may end here
    }
  }
}

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

  // Where each key lies; its value lies `to_value` further. Up to whole vectors of scores the last key again; then, for they are only
  // asked for ahead, the first values. Scales are asked for here, and read when the scores are there.
  const T* key[kSpan + kAheadKeys];
  const int64_t to_value = a.kv_heads * plane_of<T>(a);
  const Cursor<T> first = Cursor<T>::at(a, item.sequence, item.kv_head, 0, item.key0);
  Cursor<T> cursor = first;
  for (int64_t i = 0; i < keys; i++) {
    key[i] = cursor.here();
    if (i < kAheadKeys) prefetch(key[i], bytes);
    if (kScaled<T> && (i == 0 || cursor.offset == 0)) {
      prefetch(cursor.scale(), sizeof(float) * a.block_size);
      prefetch((const T*)cursor.scale() + to_value, sizeof(float) * a.block_size);
    }
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

  float key_scale[kScaled<T> ? kSpan : 1], value_scale[kScaled<T> ? kSpan : 1];
  if constexpr (kScaled<T>) {
    cursor = first;
    for (int64_t i = 0; i < keys;) {  // a block's scales lie beside each other
      const int64_t run = least(keys - i, a.block_size - cursor.offset);
      memcpy(key_scale + i, cursor.scale(), sizeof(float) * run);
      memcpy(value_scale + i, (const T*)cursor.scale() + to_value, sizeof(float) * run);
      i += run, cursor.index++, cursor.offset = 0;
    }
    for (int64_t i = keys; i < padded_keys; i++) key_scale[i] = key_scale[keys - 1], value_scale[i] = 0;
  }
  float maximum[R], sum[R];
  for (int r = 0; r < R; r++) {
    float* row_s = s + r * kSpan;
    if constexpr (kScaled<T>)
      for (int64_t i = 0; i < padded_keys; i += kLanes) store(row_s + i, mul(load(row_s + i), load(key_scale + i)));
    if (a.softcap > 0) soft_cap(row_s, padded_keys, a.softcap);
    vf top = set1(-INFINITY);
    for (int64_t i = 0; i < padded_keys; i += kLanes) top = max(top, load(row_s + i));  // the padding repeats the last key
    maximum[r] = reduce_max(top);
    const vf m = set1(maximum[r]);
    vf total = zero();
    for (int64_t i = 0; i < padded_keys; i += kLanes) {
      const vf p = keep_first(exp(sub(load(row_s + i), m)), keys - i, zero());
      if constexpr (kScaled<T>) store(row_s + i, mul(p, load(value_scale + i)));
      else store(row_s + i, p);
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

template <class T>
void attend(const Call& c, const Item& item, float* work) {
  const bool decode = item.token1 - item.token0 == 1 && c.group <= kDecodeRows && c.a->head_dim % kLanes == 0 &&
                      item.key1 - item.key0 <= kSpan;
  if (!decode) return tile_span<T>(c, item, work);
  switch (c.group) {
    case 1: return decode_span<1, T>(c, item, 0, work);
    case 2: return decode_span<2, T>(c, item, 0, work);
    case 3: return decode_span<3, T>(c, item, 0, work);
    default: return decode_span<4, T>(c, item, 0, work);
  }
}

// How a sequence is cut: by its own lengths only.
struct Cut {
  int64_t tokens, start, tile_tokens, tiles, first_key, spans;

  static Cut of(const Call& c, int64_t b) {
    const PllmPagedAttention& a = *c.a;
    Cut cut;
    cut.tokens = a.query_start[b + 1] - a.query_start[b];
    cut.start = a.context_len[b] - cut.tokens;
    cut.tile_tokens = most(1, kQueryRows / c.group);
    cut.tiles = (cut.tokens + cut.tile_tokens - 1) / cut.tile_tokens;
    cut.first_key = a.sliding_window ? most(0, cut.start - a.sliding_window + 1) : 0;
    cut.spans = cut.tiles == 1 ? (a.context_len[b] + kSpan - 1) / kSpan - cut.first_key / kSpan : 1;
    return cut;
  }
  int64_t items(int64_t heads) const { return tiles * heads * spans; }
};

// The spans of a row, merged in order.
void merge(const Call& c, const Item* items, int64_t spans) {
  const PllmPagedAttention& a = *c.a;
  const int64_t rows = (items->token1 - items->token0) * c.group;
  float o[kMaxHeadDim + kPanel];
  for (int64_t r = 0; r < rows; r++) {
    float top = -INFINITY, sum = 0;
    for (int64_t s = 0; s < spans; s++) {
      const float m = items[s].partial[r * c.row_floats + c.padded];
      if (!(m <= top)) top = m;  // a NaN stays
    }
    memset(o, 0, sizeof(float) * c.padded);
    for (int64_t s = 0; s < spans; s++) {
      const float* from = items[s].partial + r * c.row_floats;
      float e[kLanes] = {0};
      if (from[c.padded] == -INFINITY) continue;  // nothing of this span was seen
      e[0] = from[c.padded] - top;
      store(e, exp(load(e)));
      sum += from[c.padded + 1] * e[0];
      for (int64_t d = 0; d < c.padded; d += kLanes) store(o + d, fmadd(load(from + d), set1(e[0]), load(o + d)));
    }
    const int64_t token = a.query_start[items->sequence] + items->token0 + r / c.group;
    const int64_t head = items->kv_head * c.group + r % c.group;
    finish(a, head, top, sum, o, a.out + (token * a.heads + head) * a.head_dim);
  }
}

template <class T>
int run(const PllmPagedAttention& a) {
  Call c = {&a, a.heads / a.kv_heads, round_up(a.head_dim, kPanel), 0};
  c.row_floats = c.padded + 16;
  int64_t count = 0, partial_rows = 0, work = 0;
  for (int64_t b = 0; b < a.sequences; b++) {
    const Cut cut = Cut::of(c, b);
    count += cut.items(a.kv_heads);
    work += cut.tokens * (a.context_len[b] - cut.first_key);
    if (cut.spans > 1) partial_rows += cut.tokens * c.group * a.kv_heads * cut.spans;
  }
  if (!count) return PLLM_OK;
  const bool alone = work * a.heads * a.head_dim <= 32768;
  const int64_t room = most(kQueryRows, c.group);
  const int64_t tile_floats =
      (a.head_dim + c.padded) * kKeys + room * (c.padded + kQueryStride + 2) + kTileRows * kKeys;
  const int64_t decode_floats = kDecodeRows * (a.head_dim + kSpan + c.padded) + c.padded;
  const int64_t floats = round_up(most(tile_floats, decode_floats), 16) + 16;
  Item* items = (Item*)scratch(kScratchItems, sizeof(Item) * count);
  float* workers = (float*)scratch(kScratchWorkers, sizeof(float) * floats * num_threads());
  float* partials = partial_rows ? (float*)scratch(kScratchPartials, sizeof(float) * partial_rows * c.row_floats) : nullptr;
  if (!items || !workers || (partial_rows && !partials)) return PLLM_OUT_OF_MEMORY;

  int64_t n = 0;
  for (int64_t b = 0; b < a.sequences; b++) {
    const Cut cut = Cut::of(c, b);
    for (int64_t t = cut.tiles - 1; t >= 0; t--) {  // the longest first
      const int64_t token0 = t * cut.tile_tokens, token1 = least(cut.tokens, token0 + cut.tile_tokens);
      const int64_t end = cut.start + token1;
      const int64_t begin = a.sliding_window ? most(0, cut.start + token0 - a.sliding_window + 1) : 0;
      for (int64_t h = 0; h < a.kv_heads; h++) {
        for (int64_t s = 0; s < cut.spans; s++) {
          Item& item = items[n++];
          item = {(int32_t)b, (int32_t)h, (int32_t)token0, (int32_t)token1, begin, end, nullptr};
          if (cut.spans > 1) {
            const int64_t span = cut.first_key / kSpan + s;
            item.key0 = most(begin, span * kSpan);
            item.key1 = least(end, (span + 1) * kSpan);
            item.partial = partials;
            partials += (token1 - token0) * c.group * c.row_floats;
          }
        }
      }
    }
  }

  loop(a.sequences * a.kv_heads, kWrittenHeads, alone || a.tokens * a.kv_heads * a.head_dim <= 32768,
       [&](int, int64_t begin, int64_t end) {
         for (int64_t i = begin; i < end; i++) write_cache<T>(a, i / a.kv_heads, i % a.kv_heads);
       });
  loop(count, 1, alone, [&](int member, int64_t i, int64_t) { attend<T>(c, items[i], workers + member * floats); });
  if (partial_rows) {
    loop(count, kMergedItems, alone, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        if (!items[i].partial || (i && items[i - 1].partial && items[i - 1].sequence == items[i].sequence &&
                                  items[i - 1].kv_head == items[i].kv_head))
          continue;  // not the first span of its row set
        merge(c, items + i, Cut::of(c, items[i].sequence).spans);
      }
    });
  }
  return PLLM_OK;
}

}  // namespace

int paged_attention(const PllmPagedAttention& a) {
  switch (a.kv_dtype) {
    case PLLM_FLOAT32: return run<float>(a);
    case PLLM_BFLOAT16: return run<uint16_t>(a);
    default: return run<int8_t>(a);
  }
}

}  // namespace PLLM_ISA
}  // namespace pllm
