// Paged attention: writes this step's keys and values into the pool, then attends over it.
//
// A sequence's work is cut into items (kv head, tile of query tokens, span of keys), by its own lengths only, so a row's result
// does not depend on its neighbours. Short tiles cut their keys into spans (Flash-Decoding) so that one long sequence keeps
// all cores busy; the spans' partial softmaxes are then merged in order. Two ways through an item:
//   decode_span: few query rows. Keys are read where they lie; dot products over head_dim.
//   tile_span:   many query rows. Keys are gathered and transposed, values gathered, 128 at a time, and two dense products
//                around an online softmax (FlashAttention, Dao et al. 2022) share them.
//
// In an int8 pool the keys of a block and head are followed by their scales, a float each, and the values likewise. Scales meet
// what is made of keys and values, a score and a weight of the softmax, not their elements: these stay whole numbers in both ways
// (attention_decode_int8.h, attention_tile_int8.h).
#include <string.h>

#include "attention_decode.h"
#include "attention_decode_int8.h"
#include "attention_item.h"
#include "attention_tile.h"
#include "attention_tile_int8.h"
#include "kernels.h"
#include "rounding.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kWrittenHeads = 4, kMergedItems = 16;  // in a piece of a loop

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

// One query token, R heads: few enough for keys to be read in place.
template <int R, class T>
void decode(const Call& c, const Item& item, float* work) {
  if constexpr (kScaled<T>) decode_span_int8<R>(c, item, 0, work);
  else decode_span<R, T>(c, item, 0, work);
}

template <class T>
void attend(const Call& c, const Item& item, float* work) {
  const bool few = item.token1 - item.token0 == 1 && c.group <= kDecodeRows && item.key1 - item.key0 <= kSpan &&
                   (kScaled<T> || c.a->head_dim % kLanes == 0);
  if (!few) {
    if constexpr (kScaled<T>) return tile_span<Int8Tile>(c, item, work);
    else return tile_span<FloatTile<T>>(c, item, work);
  }
  switch (c.group) {
    case 1: return decode<1, T>(c, item, work);
    case 2: return decode<2, T>(c, item, work);
    case 3: return decode<3, T>(c, item, work);
    default: return decode<4, T>(c, item, work);
  }
}

// Of what attend works on.
template <class T>
int64_t floats_of(const Call& c) {
  if constexpr (kScaled<T>) return most(Int8Tile::floats(c), decode_int8_floats(c));
  else return most(WideTile::floats(c), decode_floats(c));
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
      if (!(m <= top)) top = m;  // a NaN is in its factor below, too
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
  const int64_t floats = round_up(floats_of<T>(c), 16) + 16;
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
