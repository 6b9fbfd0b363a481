// Rows of logits: argmax, log-sum-exp, and one draw per row without sorting the vocabulary.
//
// A row's maxima by groups of 64 give, in one pass, the maximum, NaN, and a lower bound of the k-th largest value (the k-th
// largest group maximum), so that only a handful of groups is looked at again. The nucleus is found by a quickselect on mass.
#include <string.h>

#include "kernels.h"
#include "simd.h"

namespace pllm {
namespace PLLM_ISA {

namespace {

constexpr int64_t kGroup = 64, kChunk = 1024;

PLLM_INLINE int64_t groups_of(int64_t vocab) { return (vocab + kGroup - 1) / kGroup; }

// The maximum of x[0..n), n <= kGroup; NaN is reported.
PLLM_INLINE float group_max(const float* x, int64_t n, bool* nan) {
  vf top = set1(-INFINITY), bad = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf v = n - i >= kLanes ? load(x + i) : keep_first(load_first(x + i, n - i), n - i, set1(-INFINITY));
    top = max(top, v);  // may lose a NaN, `bad` does not
    bad = add(bad, sub(v, v));
  }
  // inf - inf is NaN too: look again only where something is odd
  if (any_nan(bad))
    for (int64_t i = 0; i < n; i++)
      if (x[i] != x[i]) *nan = true;
  return reduce_max(top);
}

// The first index of `value` in x[0..n).
int64_t find(const float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf v = n - i >= kLanes ? load(x + i) : load_first(x + i, n - i);
    const uint32_t equal = mask_equal(v, set1(value));
    if (equal) return i + __builtin_ctz(equal);
  }
  return 0;
}

PLLM_INLINE void swap(float& a, float& b) {
  const float t = a;
  a = b;
  b = t;
}

PLLM_INLINE float median(float a, float b, float c) {
  if (a > b) swap(a, b);
  if (b > c) swap(b, c);
  return a > b ? a : b;
}

// x[0..n) becomes: greater than the pivot, equal, less. Returns the ends of the first two.
PLLM_INLINE void partition(float* x, int64_t n, float pivot, int64_t* greater, int64_t* equal) {
  int64_t low = 0, i = 0, high = n;
  while (i < high) {
    if (x[i] > pivot)
      swap(x[low++], x[i++]);
    else if (x[i] < pivot)
      swap(x[i], x[--high]);
    else
      i++;
  }
  *greater = low;
  *equal = high;
}

// The k-th largest (k from 1) of x[0..n); x is reordered.
float kth_largest(float* x, int64_t n, int64_t k) {
  for (;;) {
    const float pivot = median(x[0], x[n / 2], x[n - 1]);
    int64_t greater, equal;
    partition(x, n, pivot, &greater, &equal);
    if (k <= greater) {
      n = greater;
    } else if (k <= equal) {
      return pivot;
    } else {
      x += equal;
      n -= equal;
      k -= equal;
    }
  }
}

// The nucleus of weights x[0..n): values above *threshold, and *ties of those equal to it. x is reordered.
void select_nucleus(float* x, int64_t n, double mass, float* threshold, int64_t* ties) {
  while (n > 0) {
    const float pivot = median(x[0], x[n / 2], x[n - 1]);
    int64_t greater, equal;
    partition(x, n, pivot, &greater, &equal);
    double above = 0;
    for (int64_t i = 0; i < greater; i++) above += x[i];
    if (greater && above >= mass) {
      n = greater;
      continue;
    }
    // A tie is kept while the mass before it is below the target.
    int64_t kept = 0;
    while (kept < equal - greater && above < mass) above += pivot, kept++;
    *threshold = pivot;
    *ties = kept;
    if (above >= mass || equal == n) return;
    x += equal;
    n -= equal;
    mass -= above;
  }
}

PLLM_INLINE uint32_t bucket_of(float weight) {  // in the order of the weights, 16 to an octave, 128 octaves below 1
  uint32_t bits;
  memcpy(&bits, &weight, 4);
  return bits >> 19;
}

// The same for many weights in [0, 1]: finds the bucket in which the mass is reached, and selects among its weights only.
void nucleus(float* x, int64_t n, double mass, float* threshold, int64_t* ties) {
  if (n < 256) return select_nucleus(x, n, mass, threshold, ties);
  constexpr int64_t buckets = (0x3f800000 >> 19) + 1;
  double sums[buckets] = {0};
  for (int64_t i = 0; i < n; i++) sums[bucket_of(x[i])] += x[i];
  int64_t at = buckets - 1;
  for (; at > 0 && (sums[at] == 0 || sums[at] < mass); at--) mass -= sums[at];
  int64_t inside = 0;
  for (int64_t i = 0; i < n; i++) {
    x[inside] = x[i];
    inside += bucket_of(x[i]) == at;
  }
  *threshold = 0;  // where rounding left the mass just out of reach: everything is kept
  *ties = 0;
  select_nucleus(x, inside, mass, threshold, ties);
}

struct Row {
  const float* logits;
  int64_t vocab, groups;
  float *maxima, *weights;  // [groups], [vocab + padding]
  float* select;            // [vocab + padding]: what the selections reorder
  int32_t* ids;             // [vocab + padding]
};

// weights[i] = exp(logits[i]/t - top), top = maximum/t; for whole rows.
void weigh(const Row& row, float temperature, float top) {
  const vf t = set1(temperature), m = set1(top);
  for (int64_t i = 0; i < row.vocab; i += kLanes)
    store(row.weights + i, exp(sub(div(load_first(row.logits + i, row.vocab - i), t), m)));
}


// Draws from candidates (ids ascending) with weights: those above the threshold and the first `ties` equal to it.
int64_t draw(const Row& row, int64_t n, float threshold, int64_t ties, double uniform) {
  int64_t kept = 0, seen = 0;
  double total = 0;
  for (int64_t i = 0; i < n; i++) {
    const float w = row.weights[i];
    seen += w == threshold;
    const bool keep = w > threshold || (w == threshold && seen <= ties);
    row.weights[kept] = w;
    row.ids[kept] = row.ids[i];
    kept += keep;
    total += keep ? w : 0.0f;
  }
  const double target = uniform * total;
  double sum = 0;
  for (int64_t i = 0; i < kept; i++) {
    sum += row.weights[i];
    if (sum > target) return row.ids[i];
  }
  return row.ids[kept - 1];
}

// The candidates of the top k: scaled logits not below the k-th largest (ties stay, as in vLLM), and not below min_p.
int64_t top_k_candidates(const Row& row, int64_t k, float temperature, float top, float min_p) {
  int64_t pool;
  if (k <= row.groups) {
    memcpy(row.select, row.maxima, sizeof(float) * row.groups);
    const float bound = kth_largest(row.select, row.groups, k);
    pool = 0;
    for (int64_t g = 0; g < row.groups; g++) {
      if (row.maxima[g] < bound) continue;
      const int64_t end = (g + 1) * kGroup < row.vocab ? (g + 1) * kGroup : row.vocab;
      for (int64_t i = g * kGroup; i < end; i++)
        if (row.logits[i] >= bound) row.select[pool++] = row.logits[i];
    }
  } else {
    memcpy(row.select, row.logits, sizeof(float) * row.vocab);
    pool = row.vocab;
  }
  const float least = kth_largest(row.select, pool, k) / temperature;
  int64_t n = 0;
  for (int64_t g = 0; g < row.groups; g++) {
    if (row.maxima[g] / temperature < least) continue;
    const int64_t end = (g + 1) * kGroup < row.vocab ? (g + 1) * kGroup : row.vocab;
    for (int64_t i = g * kGroup; i < end; i++) {
      if (row.logits[i] / temperature < least) continue;
      row.ids[n] = (int32_t)i;
      row.select[n++] = row.logits[i];
    }
  }
  const vf t = set1(temperature), m = set1(top);
  for (int64_t i = 0; i < n; i += kLanes) store(row.weights + i, exp(sub(div(load(row.select + i), t), m)));
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    if (row.weights[i] == 0 || row.weights[i] < min_p) continue;
    row.weights[kept] = row.weights[i];
    row.ids[kept++] = row.ids[i];
  }
  return kept;
}

// Sum of weights that are at least min_p; per chunk into `sums` where given.
double total_weight(const Row& row, float min_p, double* sums) {
  const vf limit = set1(min_p);
  double total = 0;
  for (int64_t c = 0; c < row.vocab; c += kChunk) {
    const int64_t end = c + kChunk < row.vocab ? c + kChunk : row.vocab;
    vf s = zero();
    for (int64_t i = c; i < end; i += kLanes) {
      vf w = load(row.weights + i);
      if (end - i < kLanes) w = keep_first(w, end - i, zero());
      s = add(s, zero_below(w, w, limit));
    }
    const double sum = reduce_add(s);
    if (sums) sums[c / kChunk] = sum;
    total += sum;
  }
  return total;
}

// Packs the lanes of w named by the bits of `in`, and their ids, to the front; writes kLanes of each. Returns how many.
PLLM_INLINE int64_t compress(vf w, int32_t id, uint32_t in, float* weights, int32_t* ids) {
#if defined(__AVX512F__)
  const __m512i all = _mm512_add_epi32(_mm512_set1_epi32(id), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  store(weights, _mm512_maskz_compress_ps((__mmask16)in, w));
  _mm512_storeu_si512(ids, _mm512_maskz_compress_epi32((__mmask16)in, all));
#else
  float lanes[kLanes];
  store(lanes, w);
  int64_t n = 0;
  for (int i = 0; i < kLanes; i++) {
    weights[n] = lanes[i];
    ids[n] = id + i;
    n += in >> i & 1;
  }
#endif
  return __builtin_popcount(in);
}

int64_t sample(const Row& row, float maximum, float temperature, int64_t top_k, float top_p, float min_p, double uniform) {
  const float top = maximum / temperature;
  const bool limit_k = top_k > 0 && top_k < row.vocab, limit_p = top_p < 1.0f;
  if (min_p < 0) min_p = 0;
  if (limit_k) {
    const int64_t n = top_k_candidates(row, top_k, temperature, top, min_p);
    float threshold = 0;
    int64_t ties = 0;
    if (limit_p) {
      double total = 0;
      for (int64_t i = 0; i < n; i++) total += row.weights[i];
      memcpy(row.select, row.weights, sizeof(float) * n);
      nucleus(row.select, n, total * top_p, &threshold, &ties);
    }
    return draw(row, n, threshold, ties, uniform);
  }
  weigh(row, temperature, top);
  if (!limit_p) {
    double* sums = (double*)row.select;
    const double target = uniform * total_weight(row, min_p, sums);
    const int64_t chunks = (row.vocab + kChunk - 1) / kChunk;
    double sum = 0;
    int64_t chunk = 0, last = 0;
    for (; chunk < chunks - 1 && !(sum + sums[chunk] > target); chunk++) sum += sums[chunk];
    while (chunk > 0 && sums[chunk] == 0) chunk--;  // rounding only: never fall behind the last kept token
    const int64_t end = (chunk + 1) * kChunk < row.vocab ? (chunk + 1) * kChunk : row.vocab;
    for (int64_t i = chunk * kChunk; i < end; i++) {
      const float w = row.weights[i];
      if (w == 0 || w < min_p) continue;
      sum += w;
      last = i;
      if (sum > target) break;
    }
    return last;
  }
  // What is below this cannot be in the nucleus: all of it together is less than the mass left out.
  const double total = total_weight(row, min_p, nullptr);
  float floor = (float)((1.0 - top_p) * total / (double)row.vocab * 0.999);
  if (floor < min_p) floor = min_p;
  if (floor < 1e-37f) floor = 1e-37f;  // a weight of zero is no candidate
  int64_t n = 0;
  for (int64_t g = 0; g < row.groups; g++) {
    const int64_t end = (g + 1) * kGroup < row.vocab ? (g + 1) * kGroup : row.vocab;
    for (int64_t i = g * kGroup; i < end; i += kLanes) {
      uint32_t in = mask_at_least(load(row.weights + i), set1(floor));
      if (end - i < kLanes) in &= (1u << (end - i)) - 1;
      n += compress(load(row.weights + i), (int32_t)i, in, row.select + n, row.ids + n);
    }
  }
  memcpy(row.weights, row.select, sizeof(float) * n);
  float threshold = 0;
  int64_t ties = 0;
  nucleus(row.select, n, total * top_p, &threshold, &ties);
  return draw(row, n, threshold, ties, uniform);
}

}  // namespace

void argmax(const float* logits, int64_t rows, int64_t vocab, int64_t stride, int64_t* ids, float* maxima, int32_t* status) {
  loop(rows, 1, false, [&](int, int64_t r, int64_t) {
    const float* x = logits + r * stride;
    float top = -INFINITY;
    int64_t best = 0;
    bool nan = false;
    for (int64_t i = 0; i < vocab; i += kGroup) {
      const float here = group_max(x + i, vocab - i < kGroup ? vocab - i : kGroup, &nan);
      if (here > top) top = here, best = i;
    }
    ids[r] = best + find(x + best, vocab - best < kGroup ? vocab - best : kGroup, top);
    maxima[r] = top;
    status[r] = nan || top == INFINITY || top == -INFINITY ? PLLM_ROW_NOT_FINITE : PLLM_ROW_OK;
  });
}

void logsumexp(const float* logits, int64_t rows, int64_t vocab, int64_t stride, double* out) {
  loop(rows, 1, false, [&](int, int64_t r, int64_t) {
    const float* x = logits + r * stride;
    bool nan = false;
    float top = -INFINITY;
    for (int64_t i = 0; i < vocab; i += kGroup) {
      const float here = group_max(x + i, vocab - i < kGroup ? vocab - i : kGroup, &nan);
      if (here > top) top = here;
    }
    if (nan || top == -INFINITY || top == INFINITY) {
      out[r] = nan ? NAN : top;
      return;
    }
    double sum = 0;
    const vf m = set1(top);
    for (int64_t c = 0; c < vocab; c += kChunk) {
      const int64_t end = c + kChunk < vocab ? c + kChunk : vocab;
      vf s = zero();
      for (int64_t i = c; i < end; i += kLanes)
        s = add(s, keep_first(exp(sub(load_first(x + i, end - i), m)), end - i, zero()));
      sum += reduce_add(s);
    }
    out[r] = top + log(sum);
  });
}

int sample_rows(const float* logits, int64_t rows, int64_t vocab, int64_t stride, const float* temperature,
                const int32_t* top_k, const float* top_p, const float* min_p, const double* uniform, int64_t* ids,
                int32_t* status) {
  const int threads = num_threads();
  const int64_t groups = groups_of(vocab), padded = (vocab + 31) / 16 * 16;
  const int64_t floats = (groups + 15) / 16 * 16 + 3 * padded;
  float* work = (float*)scratch(kScratchWorkers, sizeof(float) * floats * threads);
  if (!work) return PLLM_OUT_OF_MEMORY;
  loop(rows, 1, false, [&](int member, int64_t r, int64_t) {
    float* own = work + member * floats;
    Row row = {logits + r * stride, vocab, groups, own, own + (groups + 15) / 16 * 16, nullptr, nullptr};
    row.select = row.weights + padded;
    row.ids = (int32_t*)(row.select + padded);
    bool nan = false;
    float top = -INFINITY;
    int64_t best = 0;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t i = g * kGroup;
      row.maxima[g] = group_max(row.logits + i, vocab - i < kGroup ? vocab - i : kGroup, &nan);
      if (row.maxima[g] > top) top = row.maxima[g], best = i;
    }
    status[r] = nan || top == INFINITY || top == -INFINITY ? PLLM_ROW_NOT_FINITE : PLLM_ROW_OK;
    ids[r] = 0;
    if (status[r] != PLLM_ROW_OK) return;
    if (temperature[r] < 1e-5f)
      ids[r] = best + find(row.logits + best, vocab - best < kGroup ? vocab - best : kGroup, top);
    else
      ids[r] = sample(row, top, temperature[r], top_k[r], top_p[r], min_p[r], uniform[r]);
  });
  return PLLM_OK;
}

}  // namespace PLLM_ISA
}  // namespace pllm
