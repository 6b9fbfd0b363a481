// y = x W^T + b with int8 or int4 weights, and activations rounded to int8 a row at a time; and the gather of rows. Gated: the
// outputs are gate and up in turns of half a panel, and y = silu(gate) * up.
//
// Sums are whole numbers, and what follows is done in one order, so a row's result has the same bits alone, in any batch, on any
// number of threads and on either instruction set. Weights are stored without a sign, with 128 or 8 added (vpdpbusd multiplies
// unsigned by signed bytes); every accumulator begins at what that adds, less.
//
// int8: uint8 [ceil(N/32)][K/4][32][4], a scale an output. int4: uint8 [ceil(N/32)][K/8][32][4], the low half of a byte for one
// step of four k and the high half for the next, and for each group of k a scale an output, bfloat16 [ceil(N/32)][groups][32].
// Both as kernels/quantization.py makes them. x, once rounded: tiles of rows, each [K/4][rows][4].
#include <string.h>

#include "kernels.h"
#include "rounding.h"
#include "simd.h"
#include "words.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kPanel = 32, kQuad = 4;
constexpr int64_t kLine = kPanel * kQuad;            // bytes of a panel for one step of four k
constexpr int64_t kBlockBytes = 512 << 10;           // of rounded x that panels are multiplied with before the next: stays in L2
constexpr int64_t kDirectBytes = 64 << 10, kBlockedBytes = 256 << 10;  // of weight, in a piece of the loop
constexpr int64_t kPiecesEach = 32;                  // at least, for each thread, so that all end together
constexpr int64_t kAhead = 4096;                     // bytes of prefetch distance along a weight

PLLM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
PLLM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
PLLM_INLINE int64_t split(int64_t total, int64_t part, int64_t parts) { return total * part / parts; }

struct Problem {
  const int8_t* x;       // tiles of rounded rows
  const float* x_scale;  // [m]
  const int32_t* start;  // what the accumulators of a tile's rows begin at: tiles of [groups][rows]
  const uint8_t* weight;
  const void* scale;  // int8: float [n]; int4: bfloat16
  const float* bias;  // [n] or null
  float* y;
  int64_t m, n, quads, groups, y_stride, tiles;
  bool gated;
};

#if defined(__AVX512F__)

// Written out, because g++ 12 copies the sum of _mm512_dpbusd_epi32 around, through memory, at every step: 0.8 Top/s, not 1.8.
PLLM_INLINE vi multiply_add(vi sum, vi w, vi x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}
PLLM_INLINE vi multiply_add_int8(vi sum, vi w, vi x) { return multiply_add(sum, w, x); }
PLLM_INLINE vi low_halves(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
PLLM_INLINE vi high_halves(vi a) { return low_halves(_mm512_srli_epi16(a, 4)); }
PLLM_INLINE vi rounded(vf a) { return _mm512_cvtps_epi32(a); }
PLLM_INLINE vi multiply_whole(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
PLLM_INLINE vf as_floats(vi a) { return _mm512_castsi512_ps(a); }
PLLM_INLINE vi packed(const vi a[4]) {  // as int8: of each 128 bits four of a[0], of a[1], of a[2] and of a[3]
  return _mm512_packs_epi16(_mm512_packs_epi32(a[0], a[1]), _mm512_packs_epi32(a[2], a[3]));
}

#else

// maddubs adds pairs of products in 16 bits: enough for int4.
PLLM_INLINE vi multiply_add(vi sum, vi w, vi x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
// Of int8, |w| and x with w's sign make 2 * 128 * 127 at most, just within, where w with its 128 and x would overflow.
PLLM_INLINE vi multiply_add_int8(vi sum, vi w, vi x) {
  const vi plain = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
  return multiply_add(sum, _mm256_abs_epi8(plain), _mm256_sign_epi8(x, plain));
}
PLLM_INLINE vi low_halves(vi a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
PLLM_INLINE vi high_halves(vi a) { return low_halves(_mm256_srli_epi16(a, 4)); }
PLLM_INLINE vi rounded(vf a) { return _mm256_cvtps_epi32(a); }
PLLM_INLINE vi multiply_whole(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
PLLM_INLINE vf as_floats(vi a) { return _mm256_castsi256_ps(a); }
PLLM_INLINE vi packed(const vi a[4]) {
  return _mm256_packs_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(a[2], a[3]));
}

#endif

constexpr int V = 2, kPasses = (int)kPanel / (V * kLanes);  // vectors of outputs at a time, and how often for a panel
// Where in a panel a pass's vectors begin: half a panel apart, so that a gate and its up meet.
PLLM_INLINE int64_t column_of(int v, int pass) { return v * kPanel / V + pass * kLanes; }

PLLM_INLINE vi quad_of(const int8_t* x) {
  int32_t quad;
  memcpy(&quad, x, sizeof quad);
  return set_all(quad);
}

// Lines of the next panel that a tile asks for while it multiplies with this one: its share, so that memory is busy throughout.
// A tile that has a panel to itself (ALONE) asks for what is kAhead further on instead.
struct Ahead {
  const char* from;
  int64_t lines;
};

template <bool ALONE>
PLLM_INLINE void prefetch_lines(const uint8_t* w, int pass, const Ahead& ahead, int64_t step) {
  if (pass) return;
  if (ALONE) {
    _mm_prefetch((const char*)w + kAhead, _MM_HINT_T0);
    _mm_prefetch((const char*)w + kAhead + 64, _MM_HINT_T0);
  } else if (step < ahead.lines) {
    _mm_prefetch(ahead.from + step * 64, _MM_HINT_T0);
  }
}

template <int R>
PLLM_INLINE void write(const Problem& p, const vf y[R][V], int64_t row, int64_t column, int pass) {
  float* to = p.y + row * p.y_stride + column_of(0, pass);
  if (p.gated) {  // through memory, and a row at a time, for the code's sake: there are many copies of it
    float sums[R][V * kLanes];
    PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int v = 0; v < V; v++) store(sums[r] + v * kLanes, y[r][v]);
    for (int r = 0; r < R; r++) store(to + r * p.y_stride + column / 2, silu_mul(load(sums[r]), load(sums[r] + kLanes)));
    return;
  }
  PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int v = 0; v < V; v++) {
    const int64_t first = column + column_of(v, 0);
    store_first(to + r * p.y_stride + first, y[r][v], p.n - first - column_of(0, pass));
  }
}

struct Int8 {
  static constexpr int kTileRows = kLanes == 16 ? 12 : 4;  // as many as leave room for the weights in the registers
  static constexpr int kOffset = kLanes == 16 ? 128 : 0;   // that weights are multiplied with on top of them
  static int64_t panel_bytes(const Problem& p) { return p.quads * kLine; }

  // R rows of a tile times a panel.
  template <int R, bool ALONE>
  static void tile(const Problem& p, const int8_t* x, const int32_t* start, const uint8_t* panel, int64_t row, int64_t column,
                   Ahead ahead) {
    for (int pass = 0; pass < kPasses; pass++) {
      vi sum[R][V];
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int v = 0; v < V; v++) sum[r][v] = set_all(start[r]);
      const uint8_t* w = panel + column_of(0, pass) * kQuad;
      const int8_t* at = x;
      for (int64_t q = 0; q < p.quads; q++, w += kLine, at += R * kQuad) {
        prefetch_lines<ALONE>(w, pass, ahead, q);
        vi weights[V];
        PLLM_UNROLL for (int v = 0; v < V; v++) weights[v] = load_whole(w + column_of(v, 0) * kQuad);
        PLLM_UNROLL for (int r = 0; r < R; r++) {
          const vi quad = quad_of(at + r * kQuad);
          PLLM_UNROLL for (int v = 0; v < V; v++) sum[r][v] = multiply_add_int8(sum[r][v], weights[v], quad);
        }
      }
      vf y[R][V];
      PLLM_UNROLL for (int v = 0; v < V; v++) {
        const int64_t first = column + column_of(v, pass), left = p.n - first;
        const vf scale = load_first((const float*)p.scale + first, left);
        const vf bias = p.bias ? load_first(p.bias + first, left) : zero();
        PLLM_UNROLL for (int r = 0; r < R; r++) y[r][v] = fmadd(to_float(sum[r][v]), mul(scale, set1(p.x_scale[row + r])), bias);
      }
      write<R>(p, y, row, column, pass);
    }
  }
};

struct Int4 {
  static constexpr int kTileRows = kLanes == 16 ? 6 : 2;  // two sums for each output: of the group, and of all
  static constexpr int kOffset = 8;
  static int64_t panel_bytes(const Problem& p) { return p.quads / 2 * kLine; }

  template <int R, bool ALONE>
  static void tile(const Problem& p, const int8_t* x, const int32_t* start, const uint8_t* panel, int64_t row, int64_t column,
                   Ahead ahead) {
    const int64_t lines = p.quads / 2 / p.groups;
    const uint16_t* scales = (const uint16_t*)p.scale + column * p.groups;
    for (int pass = 0; pass < kPasses; pass++) {
      vf total[R][V];
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int v = 0; v < V; v++) total[r][v] = zero();
      const uint8_t* w = panel + column_of(0, pass) * kQuad;
      const int8_t* at = x;
      for (int64_t g = 0; g < p.groups; g++) {
        vi sum[R][V];
        PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int v = 0; v < V; v++) sum[r][v] = set_all(start[g * R + r]);
        for (int64_t l = 0; l < lines; l++, w += kLine, at += 2 * R * kQuad) {
          prefetch_lines<ALONE>(w, pass, ahead, g * lines + l);
          vi low[V], high[V];
          PLLM_UNROLL for (int v = 0; v < V; v++) {
            const vi both = load_whole(w + column_of(v, 0) * kQuad);
            low[v] = low_halves(both);
            high[v] = high_halves(both);
          }
          PLLM_UNROLL for (int r = 0; r < R; r++) {
            const vi first = quad_of(at + r * kQuad), second = quad_of(at + (R + r) * kQuad);
            PLLM_UNROLL for (int v = 0; v < V; v++) sum[r][v] = multiply_add(multiply_add(sum[r][v], low[v], first), high[v], second);
          }
        }
        PLLM_UNROLL for (int v = 0; v < V; v++) {
          const vf scale = load(scales + g * kPanel + column_of(v, pass));
          PLLM_UNROLL for (int r = 0; r < R; r++) total[r][v] = fmadd(to_float(sum[r][v]), scale, total[r][v]);
        }
      }
      PLLM_UNROLL for (int v = 0; v < V; v++) {
        const int64_t first = column + column_of(v, pass);
        const vf bias = p.bias ? load_first(p.bias + first, p.n - first) : zero();
        PLLM_UNROLL for (int r = 0; r < R; r++) total[r][v] = fmadd(total[r][v], set1(p.x_scale[row + r]), bias);
      }
      write<R>(p, total, row, column, pass);
    }
  }
};

template <class Format, bool ALONE>
void tile_of(int64_t rows, const Problem& p, const int8_t* x, const int32_t* start, const uint8_t* panel, int64_t row, int64_t column,
             Ahead ahead) {
  switch (rows) {
#define PLLM_ROWS(R) \
  case R:            \
    if constexpr (R <= Format::kTileRows) Format::template tile<R, ALONE>(p, x, start, panel, row, column, ahead); \
    return;
    PLLM_ROWS(1)
    PLLM_ROWS(2)
    PLLM_ROWS(3)
    PLLM_ROWS(4)
    PLLM_ROWS(5)
    PLLM_ROWS(6)
    PLLM_ROWS(7)
    PLLM_ROWS(8)
    PLLM_ROWS(9)
    PLLM_ROWS(10)
    PLLM_ROWS(11)
    PLLM_ROWS(12)
#undef PLLM_ROWS
  }
}

// `rows` rows of x, rounded: a tile [K/4][rows][4], their scales, and what their sums begin at, [groups][rows]. Four vectors of each
// row make a vector of quads; transposed, these are vectors of rows, which are stored, and added up for all rows at once.
void round_tile(const float* x, int64_t x_stride, int64_t k, int offset, const Problem& p, int64_t rows, int8_t* to, float* scale,
                int32_t* start) {
  constexpr int kParts = 4, kQuads = kLanes / kParts;  // vectors of a row, and the quads of each
  vf steps[kLanes];
  for (int64_t r = 0; r < rows; r++) {
    const Rounding row = rounding_of(x + r * x_stride, k);
    scale[r] = row.scale, steps[r] = row.steps;
  }
  vf quads[kLanes];
  PLLM_UNROLL for (int r = 0; r < kLanes; r++) quads[r] = zero();
  const int64_t group = p.quads / p.groups;
  int64_t left = group;
  vi sum = set_all(0);
  for (int64_t quad = 0; quad < p.quads; quad += kLanes) {
    for (int64_t r = 0; r < rows; r++) {
      const float* from = x + r * x_stride + quad * kQuad;
      const int64_t n = k - quad * kQuad;
      vi part[kParts];
      if (n >= kParts * kLanes)
        PLLM_UNROLL for (int j = 0; j < kParts; j++) part[j] = rounded(mul(load(from + j * kLanes), steps[r]));
      else
        PLLM_UNROLL for (int j = 0; j < kParts; j++) part[j] = rounded(mul(load_first(from + j * kLanes, n - j * kLanes), steps[r]));
      quads[r] = as_floats(packed(part));
    }
    vf across[kLanes];
    PLLM_UNROLL for (int r = 0; r < kLanes; r++) across[r] = quads[r];
    transpose(across);
    PLLM_UNROLL for (int i = 0; i < kLanes; i++) {
      if (quad + i >= p.quads) break;
      const vf each = across[i % kQuads * kParts + i / kQuads];  // `packed` has quad q of part j at q * kParts + j
      store_first((float*)(to + (quad + i) * rows * kQuad), each, rows);
      sum = multiply_add(sum, set_all(0x01010101), as_whole(each));
      if (--left) continue;
      store_first((float*)start, as_floats(multiply_whole(sum, set_all(-offset))), rows);
      start += rows, sum = set_all(0), left = group;
    }
  }
}

template <class Format>
int product(const float* x, int64_t m, int64_t x_stride, int64_t k, Problem p) {
  const int64_t panels = (p.n + kPanel - 1) / kPanel, padded = p.quads * kQuad, panel_bytes = Format::panel_bytes(p);
  int8_t* rounded = (int8_t*)scratch(kScratchInput, (size_t)(m * (padded + 4 + 4 * p.groups)));
  if (!rounded) return PLLM_OUT_OF_MEMORY;
  float* x_scale = (float*)(rounded + m * padded);
  int32_t* start = (int32_t*)(x_scale + m);
  p.x = rounded, p.x_scale = x_scale, p.start = start, p.m = m;
  p.tiles = (m + Format::kTileRows - 1) / Format::kTileRows;
  const bool alone = m * p.n * k <= 65536;
  loop(p.tiles, 1, alone || m * k <= 32768, [&](int, int64_t t, int64_t) {
    const int64_t row = split(m, t, p.tiles), rows = split(m, t + 1, p.tiles) - row;
    round_tile(x + row * x_stride, x_stride, k, Format::kOffset, p, rows, rounded + row * padded, x_scale + row, start + row * p.groups);
  });
  // Pieces: runs of panels, long enough to be read as a stream; times groups of rows where there are few panels.
  int64_t run_length = most(1, (p.tiles <= 2 ? scaled(kDirectBytes, tiling().streamed) : scaled(kBlockedBytes, tiling().blocked)) / panel_bytes);
  while (run_length > 1 && panels < run_length * kPiecesEach * num_threads()) run_length /= 2;
  const int64_t runs = (panels + run_length - 1) / run_length;
  int64_t across = 1;
  while (runs * across < num_threads() && across * 2 <= p.tiles) across *= 2;
  const int64_t room = most(1, scaled(kBlockBytes, tiling().rows) / (Format::kTileRows * padded)), panel_lines = panel_bytes / 64;
  loop(runs * across, 1, alone, [&](int, int64_t piece, int64_t) {
    const int64_t panel0 = piece / across * run_length, panel1 = least(panels, panel0 + run_length);
    const int64_t tile0 = split(p.tiles, piece % across, across), tile1 = split(p.tiles, piece % across + 1, across);
    const int64_t blocks = (tile1 - tile0 + room - 1) / room;
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t t0 = tile0 + split(tile1 - tile0, block, blocks), t1 = tile0 + split(tile1 - tile0, block + 1, blocks);
      const auto multiply = t1 - t0 == 1 ? tile_of<Format, true> : tile_of<Format, false>;
      for (int64_t panel = panel0; panel < panel1; panel++) {
        const uint8_t* weight = p.weight + panel * panel_bytes;
        for (int64_t t = t0; t < t1; t++) {
          const int64_t row = split(m, t, p.tiles), rows = split(m, t + 1, p.tiles) - row;
          const int64_t line0 = split(panel_lines, t - t0, t1 - t0), line1 = split(panel_lines, t - t0 + 1, t1 - t0);
          const Ahead ahead = {(const char*)weight + panel_bytes + line0 * 64, line1 - line0};
          multiply(rows, p, rounded + row * padded, start + row * p.groups, weight, row, panel * kPanel, ahead);
        }
      }
    }
  });
  return PLLM_OK;
}

}  // namespace

int quantized_linear(const float* x, int64_t m, int64_t x_stride, const uint8_t* weight, const void* scale, int64_t groups,
                     int64_t n, int64_t k, const float* bias, bool gated, float* y, int64_t y_stride) {
  Problem p = {};
  p.weight = weight, p.scale = scale, p.bias = bias, p.y = y;
  p.n = n, p.quads = (k + kQuad - 1) / kQuad, p.groups = groups ? groups : 1, p.y_stride = y_stride, p.gated = gated;
  return groups ? product<Int4>(x, m, x_stride, k, p) : product<Int8>(x, m, x_stride, k, p);
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
