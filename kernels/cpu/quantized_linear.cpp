// y = x W^T + b with int8 weights, one scale an output, and activations rounded to int8 a row at a time; and the gather of its
// rows.
//
// Sums are whole numbers, so a row's result has the same bits alone, in any batch, on any number of threads and on either
// instruction set. Weights are stored with 128 added (vpdpbusd multiplies unsigned by signed bytes); every accumulator begins
// at what that adds, -128 times the sum of the row.
//
// Weight: uint8 [ceil(N/32)][ceil(K/4)][32][4], as kernels/packing.py makes it. x, once rounded: tiles of rows, each
// [ceil(K/4)][rows][4].
#include <string.h>

#include "kernels.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kPanel = 32, kQuad = 4;
constexpr int64_t kLine = kPanel * kQuad;            // bytes of a panel for one step of four k
constexpr int64_t kTileRows = kLanes == 16 ? 12 : 4;  // rows of a tile: as many as leave room for the weights in the registers
constexpr int64_t kBlockBytes = 512 << 10;           // of rounded x that panels are multiplied with before the next: stays in L2
constexpr int64_t kDirectBytes = 64 << 10, kBlockedBytes = 256 << 10;  // of weight, in a piece of the loop
constexpr int64_t kPiecesEach = 8;                   // at least, for each thread, so that all end together
constexpr int64_t kAhead = 4096;                     // bytes of prefetch distance along a weight

PLLM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
PLLM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
PLLM_INLINE int64_t split(int64_t total, int64_t part, int64_t parts) { return total * part / parts; }

struct Problem {
  const int8_t* x;      // tiles of rounded rows
  const float* x_scale;  // [m]
  const int32_t* start;  // [m]: -128 times the sum of the row
  const uint8_t* weight;
  const float* scale;  // [n]
  const float* bias;   // [n] or null
  float* y;
  int64_t m, n, quads, y_stride, tiles;
};

#if defined(__AVX512F__)

typedef __m512i vi;
PLLM_INLINE vi load_weights(const uint8_t* p) { return _mm512_loadu_si512(p); }
PLLM_INLINE vi set_all(int32_t a) { return _mm512_set1_epi32(a); }
// Written out, because g++ 12 copies the sum of _mm512_dpbusd_epi32 around, through memory, at every step: 0.8 Top/s, not 1.8.
PLLM_INLINE vi multiply_add(vi sum, vi w, vi x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}
PLLM_INLINE vf to_float(vi a) { return _mm512_cvtepi32_ps(a); }
PLLM_INLINE void store_rounded(int8_t* p, vf a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a))); }
PLLM_INLINE vf absolute(vf a) { return _mm512_abs_ps(a); }

#else

typedef __m256i vi;
PLLM_INLINE vi load_weights(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
PLLM_INLINE vi set_all(int32_t a) { return _mm256_set1_epi32(a); }
// maddubs adds pairs of products in 16 bits. With |w| and x with w's sign they are 2 * 128 * 127 at most, just within, where w and
// x themselves would overflow: so w is taken as it was, less the 128, and its share of `start` is given back.
PLLM_INLINE vi multiply_add(vi sum, vi w, vi x) {
  const vi plain = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
  const vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(plain), _mm256_sign_epi8(x, plain));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
PLLM_INLINE vf to_float(vi a) { return _mm256_cvtepi32_ps(a); }
PLLM_INLINE void store_rounded(int8_t* p, vf a) {
  const vi whole = _mm256_cvtps_epi32(a);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}
PLLM_INLINE vf absolute(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

#endif

constexpr bool kBiased = kLanes == 16;  // whether weights are multiplied with their 128 on top

// R rows times V vectors of outputs, over all of K. PREFETCH: the weight comes from memory.
template <int R, bool PREFETCH>
void tile(const Problem& p, const int8_t* x, const uint8_t* panel, int64_t row, int64_t column) {
  constexpr int V = 2, kGroups = (int)kPanel / (V * kLanes);
  for (int g = 0; g < kGroups; g++) {
    vi sum[R][V];
    PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int v = 0; v < V; v++)
        sum[r][v] = set_all(kBiased ? p.start[row + r] : 0);
    const uint8_t* w = panel + g * V * kLanes * kQuad;
    const int8_t* at = x;
    for (int64_t q = 0; q < p.quads; q++, w += kLine, at += R * kQuad) {
      if (PREFETCH && g == 0) {
        _mm_prefetch((const char*)w + kAhead, _MM_HINT_T0);
        _mm_prefetch((const char*)w + kAhead + 64, _MM_HINT_T0);
      }
      vi weights[V];
      PLLM_UNROLL for (int v = 0; v < V; v++) weights[v] = load_weights(w + v * kLanes * kQuad);
      PLLM_UNROLL for (int r = 0; r < R; r++) {
        int32_t quad;
        memcpy(&quad, at + r * kQuad, sizeof quad);
        const vi all = set_all(quad);
        PLLM_UNROLL for (int v = 0; v < V; v++) sum[r][v] = multiply_add(sum[r][v], weights[v], all);
      }
    }
    PLLM_UNROLL for (int v = 0; v < V; v++) {
      const int64_t first = column + (g * V + v) * kLanes, left = p.n - first;
      const vf scale = load_first(p.scale + first, left), bias = p.bias ? load_first(p.bias + first, left) : zero();
      PLLM_UNROLL for (int r = 0; r < R; r++)
          store_first(p.y + (row + r) * p.y_stride + first, fmadd(to_float(sum[r][v]), mul(scale, set1(p.x_scale[row + r])), bias), left);
    }
  }
}

template <bool PREFETCH>
void tile_of(int64_t rows, const Problem& p, const int8_t* x, const uint8_t* panel, int64_t row, int64_t column) {
  switch (rows) {
#define PLLM_ROWS(R) \
  case R:            \
    return tile<R, PREFETCH>(p, x, panel, row, column);
    PLLM_ROWS(1)
    PLLM_ROWS(2)
    PLLM_ROWS(3)
    PLLM_ROWS(4)
#if defined(__AVX512F__)
    PLLM_ROWS(5)
    PLLM_ROWS(6)
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

// One row, rounded to 127 steps either way of its largest element, into its place in a tile. A row with NaN or infinity in it
// has NaN or infinity for its scale, and so for its results.
void round_row(const float* x, int64_t k, int64_t quads, int64_t rows, int8_t* to, float* scale, int32_t* start) {
  vf top = zero();
  bool nan = false;
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    const vf a = load(x + i);
    nan |= any_nan(a);
    top = max(top, absolute(a));
  }
  if (i < k) {
    const vf a = load_first(x + i, k - i);
    nan |= any_nan(a);
    top = max(top, absolute(a));
  }
  const float largest = reduce_max(top), step = nan ? NAN : largest / 127.0f;
  const float steps = largest > 0 && largest < INFINITY ? 127.0f / largest : 0.0f;
  *scale = step;
  int32_t sum = 0;
  int8_t rounded[kLanes];
  for (i = 0; i < quads * kQuad; i += kLanes) {
    store_rounded(rounded, mul(i + kLanes <= k ? load(x + i) : load_first(x + i, k - i), set1(steps)));
    const int64_t here = least(kLanes, quads * kQuad - i);
    for (int64_t j = 0; j < here; j += kQuad) memcpy(to + (i + j) * rows, rounded + j, kQuad);
    for (int64_t j = 0; j < kLanes; j++) sum += rounded[j];
  }
  *start = -128 * sum;
}

}  // namespace

int quantized_linear(const float* x, int64_t m, int64_t x_stride, const uint8_t* weight, const float* scale, int64_t n, int64_t k,
                     const float* bias, float* y, int64_t y_stride) {
  const int64_t quads = (k + kQuad - 1) / kQuad, panels = (n + kPanel - 1) / kPanel, panel_bytes = quads * kLine;
  int8_t* rounded = (int8_t*)scratch(kScratchInput, (size_t)(m * (quads * kQuad + 8)));
  if (!rounded) return PLLM_OUT_OF_MEMORY;
  float* x_scale = (float*)(rounded + m * quads * kQuad);
  int32_t* start = (int32_t*)(x_scale + m);
  const Problem p = {rounded, x_scale, start, weight, scale, bias, y, m, n, quads, y_stride, (m + kTileRows - 1) / kTileRows};
  const bool alone = m * n * k <= 65536;
  loop(p.tiles, 1, alone || m * k <= 65536, [&](int, int64_t t, int64_t) {
    const int64_t row = split(m, t, p.tiles), rows = split(m, t + 1, p.tiles) - row;
    for (int64_t r = 0; r < rows; r++)
      round_row(x + (row + r) * x_stride, k, quads, rows, rounded + row * quads * kQuad + r * kQuad, x_scale + row + r, start + row + r);
  });
  // Pieces: runs of panels, long enough to be read as a stream; times groups of rows where there are few panels.
  const bool direct = p.tiles == 1;
  int64_t run_length = most(1, (direct ? kDirectBytes : kBlockedBytes) / panel_bytes);
  while (run_length > 1 && panels < run_length * kPiecesEach * num_threads()) run_length /= 2;
  const int64_t runs = (panels + run_length - 1) / run_length;
  int64_t across = 1;
  while (runs * across < num_threads() && across * 2 <= p.tiles) across *= 2;
  loop(runs * across, 1, alone, [&](int, int64_t piece, int64_t) {
    const int64_t panel0 = piece / across * run_length, panel1 = least(panels, panel0 + run_length);
    const int64_t tile0 = split(p.tiles, piece % across, across), tile1 = split(p.tiles, piece % across + 1, across);
    const int64_t step = most(1, kBlockBytes / (kTileRows * quads * kQuad));
    for (int64_t t0 = tile0; t0 < tile1; t0 += step) {
      for (int64_t panel = panel0; panel < panel1; panel++) {
        for (int64_t t = t0; t < least(tile1, t0 + step); t++) {
          const int64_t row = split(m, t, p.tiles), rows = split(m, t + 1, p.tiles) - row;
          const int8_t* tile_x = rounded + row * quads * kQuad;
          const uint8_t* w = weight + panel * panel_bytes;
          if (t == t0)
            tile_of<true>(rows, p, tile_x, w, row, panel * kPanel);
          else
            tile_of<false>(rows, p, tile_x, w, row, panel * kPanel);
        }
      }
    }
  });
  return PLLM_OK;
}

void quantized_embedding(const int64_t* ids, int64_t tokens, const uint8_t* weight, const float* scale, int64_t k, float* y,
                         int64_t y_stride) {
  const int64_t quads = (k + kQuad - 1) / kQuad;
  loop(tokens, 1, tokens * k <= 65536, [&](int, int64_t t, int64_t) {
    const uint8_t* from = weight + ids[t] / kPanel * quads * kLine + ids[t] % kPanel * kQuad;
    for (int64_t i = 0; i < k; i++)
      y[t * y_stride + i] = (float)((int)from[i / kQuad * kLine + i % kQuad] - 128) * scale[ids[t]];
  });
}

}  // namespace PLLM_ISA
}  // namespace pllm
