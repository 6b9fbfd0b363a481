// y = x W^T + b over a packed weight, and the gather of its rows.
//
// One accumulator per output runs over K in order whatever M, so a row alone and the same row in a batch are the same bits
// (and the same on AVX2 and AVX-512). Few rows read the weight once, straight from memory into registers: the time is that of
// the weight's bytes. Many rows work on a block of K that stays in L2, widened to float32 once for all of them (the loop order
// of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
#include <string.h>

#include "kernels.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kPanel = 32, kGroups = 16 / kLanes;
constexpr int64_t kMaxRows = kLanes == 16 ? 12 : 6;  // rows of a tile: as many as leave room for the weights in the registers
constexpr int64_t kDirectTiles = 4;                  // up to here bfloat16 is widened in registers, tile by tile
constexpr int64_t kDepth = 768;                      // K of a block: 96 KB of float32, in L2
constexpr int64_t kBlockTiles = 20;                  // tiles of x that share one widened block
constexpr int64_t kAhead = 4096;                     // bytes of prefetch distance along a weight
constexpr int64_t kDirectBytes = 64 << 10, kBlockedBytes = 1 << 20;  // of weight, in a piece of the loop
constexpr int64_t kPiecesEach = 8;                   // at least, for each thread, so that all end together
constexpr int64_t kPackedColumns = 256;              // of x, in a piece

struct Problem {
  const float* x;  // m == 1: the row itself; else tiles, each [K][rows of the tile]
  const void* weight;
  const float* bias;
  float* y;
  int64_t m, n, k, y_stride, tiles;
};

PLLM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
PLLM_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
PLLM_INLINE int64_t split(int64_t total, int64_t part, int64_t parts) { return total * part / parts; }

template <int R, class T, int PREFETCH>
void tile(const float* x, const T* b, int64_t k, bool begin, const float* bias, float* y, int64_t y_stride, int64_t columns,
          const char* ahead, int64_t ahead_step) {
  constexpr int G = kGroups == 1 || R > 3 ? 1 : 2;
  for (int g0 = 0; g0 < kGroups; g0 += G) {
    vf acc[R][2 * G];
    if (begin) {
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int c = 0; c < 2 * G; c++) acc[r][c] = zero();
    } else {
      PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int c = 0; c < 2 * G; c++) {
        const int col = (g0 + c / 2) * kLanes + (c & 1) * 16;
        acc[r][c] = load_first(y + r * y_stride + col, columns - col);
      }
    }
    multiply<R, G, R, 1, PREFETCH>(x, b + g0 * kLanes * (4 / (int)sizeof(T)), k, acc, ahead, ahead_step);
    if (bias) {
      PLLM_UNROLL for (int c = 0; c < 2 * G; c++) {
        const int col = (g0 + c / 2) * kLanes + (c & 1) * 16;
        const vf add_to_all = load_first(bias + col, columns - col);
        PLLM_UNROLL for (int r = 0; r < R; r++) acc[r][c] = add(acc[r][c], add_to_all);
      }
    }
    PLLM_UNROLL for (int r = 0; r < R; r++) PLLM_UNROLL for (int c = 0; c < 2 * G; c++) {
      const int col = (g0 + c / 2) * kLanes + (c & 1) * 16;
      store_first(y + r * y_stride + col, acc[r][c], columns - col);
    }
  }
}

template <class T, int PREFETCH>
void tile_of(int64_t rows, const float* x, const T* b, int64_t k, bool begin, const float* bias, float* y, int64_t y_stride,
             int64_t columns, const char* ahead, int64_t ahead_step) {
  switch (rows) {
#define PLLM_ROWS(R) \
  case R:            \
    return tile<R, T, PREFETCH>(x, b, k, begin, bias, y, y_stride, columns, ahead, ahead_step);
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

void widen(const uint16_t* b, int64_t k, float* to) {
  for (int64_t i = 0; i < k; i++, b += kPanel, to += kPanel) {
    PLLM_UNROLL for (int g = 0; g < kGroups; g++) {
      vf low, high;
      load_pair(b + g * kLanes * 2, &low, &high);
      store(to + g * kLanes, low);
      store(to + g * kLanes + 16, high);
    }
  }
}
const float* widened(const uint16_t* b, int64_t k, float* to) {
  widen(b, k, to);
  return to;
}
const float* widened(const float* b, int64_t, float*) { return b; }

// Few rows: one pass over the panels, which are contiguous. One tile prefetches along them; each of several asks for its share of
// the next panel while it multiplies with this one, so that memory is busy throughout.
template <class T>
void direct(const Problem& p, int64_t panel0, int64_t panel1, int64_t tile0, int64_t tile1) {
  constexpr int lines = 4 * kPanel * (int)sizeof(T) / 64;
  const int64_t tiles = tile1 - tile0, step = 64 * ((lines + tiles - 1) / tiles);
  const auto multiply = tiles == 1 ? tile_of<T, 1> : tile_of<T, 2>;
  for (int64_t panel = panel0; panel < panel1; panel++) {
    const int64_t column = panel * kPanel;
    const T* b = (const T*)p.weight + panel * p.k * kPanel;
    for (int64_t t = tile0; t < tile1; t++) {
      const int64_t row = split(p.m, t, p.tiles), rows = split(p.m, t + 1, p.tiles) - row;
      const char* ahead = (const char*)(b + p.k * kPanel) + (t - tile0) * step * (p.k / 4);
      multiply(rows, p.x + row * p.k, b, p.k, true, p.bias ? p.bias + column : nullptr, p.y + row * p.y_stride + column, p.y_stride,
               p.n - column, ahead, tiles == 1 ? kAhead : step);
    }
  }
}

// Many rows: blocks of K and of x that stay in L2.
template <class T>
void blocked(const Problem& p, int64_t panel0, int64_t panel1, int64_t tile0, int64_t tile1, float* wide) {
  constexpr int lines = 4 * kPanel * (int)sizeof(T) / 64;  // cache lines of weight per four steps of K
  const int64_t block_tiles = scaled(kBlockTiles, tiling().rows), blocks = (tile1 - tile0 + block_tiles - 1) / block_tiles;
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t t0 = tile0 + split(tile1 - tile0, block, blocks), t1 = tile0 + split(tile1 - tile0, block + 1, blocks);
    const int64_t step = 64 * ((lines + t1 - t0 - 1) / (t1 - t0));
    for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
      const int64_t k = p.k - k0 < kDepth ? p.k - k0 : kDepth;
      const bool last = k0 + k == p.k;
      for (int64_t panel = panel0; panel < panel1; panel++) {
        const T* packed = (const T*)p.weight + (panel * p.k + k0) * kPanel;
        const char* ahead = (const char*)(packed + p.k * kPanel);
        const float* b = widened(packed, k, wide);
        const int64_t column = panel * kPanel;
        for (int64_t t = t0; t < t1; t++) {
          const int64_t row = split(p.m, t, p.tiles), rows = split(p.m, t + 1, p.tiles) - row;
          const float* x = p.x + row * p.k + k0 * rows;
          const float* bias = last && p.bias ? p.bias + column : nullptr;
          float* y = p.y + row * p.y_stride + column;
          if ((t - t0) * step < 64 * lines)
            tile_of<float, 2>(rows, x, b, k, k0 == 0, bias, y, p.y_stride, p.n - column, ahead + (t - t0) * step * (k / 4), step);
          else
            tile_of<float, 0>(rows, x, b, k, k0 == 0, bias, y, p.y_stride, p.n - column, nullptr, 0);
        }
      }
    }
  }
}

template <class T>
void run(const Problem& p, int64_t panel0, int64_t panel1, int64_t tile0, int64_t tile1, float* wide) {
  if (panel0 == panel1 || tile0 == tile1) return;
  if (tile1 - tile0 <= kDirectTiles)
    direct<T>(p, panel0, panel1, tile0, tile1);
  else
    blocked<T>(p, panel0, panel1, tile0, tile1, wide);
}

// Rows of x side by side, so that the product reads one stream: [K][rows] per tile. kLanes columns at a time are transposed;
// a tile has at most kLanes rows, and what is stored beyond them is overwritten by the next column.
void pack_input(const float* x, int64_t x_stride, int64_t m, int64_t k, int64_t tiles, int64_t k0, int64_t k1, float* to) {
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t row = split(m, t, tiles), rows = split(m, t + 1, tiles) - row;
    const float* from = x + row * x_stride;
    float* column = to + row * k;
    int64_t i = k0;
    for (; i + 2 * kLanes <= k1; i += kLanes) {
      vf block[kLanes];
      PLLM_UNROLL for (int64_t r = 0; r < kLanes; r++) block[r] = r < rows ? load(from + r * x_stride + i) : zero();
      transpose(block);
      PLLM_UNROLL for (int j = 0; j < kLanes; j++) store(column + (i + j) * rows, block[j]);
    }
    for (; i < k1; i++)
      for (int64_t r = 0; r < rows; r++) column[i * rows + r] = from[r * x_stride + i];
  }
}

}  // namespace

int linear(const float* x, int64_t m, int64_t x_stride, const void* weight, int weight_dtype, int64_t n, int64_t k,
           const float* bias, float* y, int64_t y_stride) {
  Problem p = {x, weight, bias, y, m, n, k, y_stride, (m + kMaxRows - 1) / kMaxRows};
  const int64_t panels = (n + kPanel - 1) / kPanel;
  const bool alone = m * n * k <= 65536;
  float* packed = m > 1 ? (float*)scratch(kScratchInput, sizeof(float) * m * k) : nullptr;
  float* wide = (float*)scratch(kScratchWorkers, sizeof(float) * kPanel * kDepth * num_threads());
  if ((m > 1 && !packed) || !wide) return PLLM_OUT_OF_MEMORY;
  if (m > 1) {
    p.x = packed;
    loop(k, kPackedColumns, alone || m * k <= 32768, [&](int, int64_t k0, int64_t k1) {
      pack_input(x, x_stride, m, k, p.tiles, k0, k1, packed);
    });
  }
  // Pieces: runs of panels, long enough to be read as a stream; times groups of rows where there are few panels.
  const int64_t bytes = k * kPanel * (weight_dtype == PLLM_FLOAT32 ? 4 : 2);
  int64_t run_length = most(1, (p.tiles <= kDirectTiles ? scaled(kDirectBytes, tiling().streamed) : scaled(kBlockedBytes, tiling().blocked)) / bytes);
  while (run_length > 1 && panels < run_length * kPiecesEach * num_threads()) run_length /= 2;
  const int64_t runs = (panels + run_length - 1) / run_length;
  int64_t across = 1;
  while (runs * across < num_threads() && across * 2 <= p.tiles) across *= 2;
  loop(runs * across, 1, alone, [&](int member, int64_t piece, int64_t) {
    const int64_t panel0 = piece / across * run_length, panel1 = least(panels, panel0 + run_length);
    const int64_t tile0 = split(p.tiles, piece % across, across), tile1 = split(p.tiles, piece % across + 1, across);
    float* own = wide + member * kPanel * kDepth;
    if (weight_dtype == PLLM_FLOAT32)
      run<float>(p, panel0, panel1, tile0, tile1, own);
    else
      run<uint16_t>(p, panel0, panel1, tile0, tile1, own);
  });
  return PLLM_OK;
}

void embedding(const int64_t* ids, int64_t tokens, const void* weight, int weight_dtype, int64_t n, int64_t k, float* y,
               int64_t y_stride) {
  (void)n;
  loop(tokens, 1, tokens * k <= 65536, [&](int, int64_t t, int64_t) {
    const int64_t panel = ids[t] / kPanel, column = ids[t] % kPanel;
    float* to = y + t * y_stride;
    if (weight_dtype == PLLM_FLOAT32) {
      const float* from = (const float*)weight + panel * k * kPanel + column;
      for (int64_t i = 0; i < k; i++) to[i] = from[i * kPanel];
    } else {
      const uint16_t* from = (const uint16_t*)weight + panel * k * kPanel + 2 * (column % 16) + column / 16;
      for (int64_t i = 0; i < k; i++) {
        const uint32_t bits = (uint32_t)from[i * kPanel] << 16;
        memcpy(to + i, &bits, sizeof bits);
      }
    }
  });
}

}  // namespace PLLM_ISA
}  // namespace pllm
