// What a compiled program calls of torch beside its tensors, with torch's names and meanings; see torch_tensors.cpp. Linked into
// the program alone, and compiled for its instruction set.
#include <immintrin.h>
#include <stdint.h>

#include <stdexcept>
#include <string>

#define PLLM_ISA program
#include "simd.h"

namespace {

thread_local bool grad_mode = false;

// Sine, or with one quarter of a turn more cosine, of |x| up to a million, within half an ulp and a little: in double, by what is left
// beyond the nearest quarter of a turn. Not by the C library's, which differs from system to system, and which whoever shares the
// process may have replaced: what a program computes would depend on that.
inline float sine(float x, int64_t quarters) {
  constexpr double round = 0x1.8p52, high = 0x1.921fb54442d18p0, low = 0x1.1a62633145c07p-54;  // pi / 2
  const double shifted = __builtin_fma((double)x, 0x1.45f306dc9c883p-1, round), n = shifted - round;
  const double r = __builtin_fma(-n, low, __builtin_fma(-n, high, (double)x)), z = r * r;
  double s = -1.0 / 39916800, c = -1.0 / 3628800;  // Taylor's
  s = __builtin_fma(s, z, 1.0 / 362880), c = __builtin_fma(c, z, 1.0 / 40320);
  s = __builtin_fma(s, z, -1.0 / 5040), c = __builtin_fma(c, z, -1.0 / 720);
  s = __builtin_fma(s, z, 1.0 / 120), c = __builtin_fma(c, z, 1.0 / 24);
  s = __builtin_fma(s, z, -1.0 / 6), c = __builtin_fma(c, z, -1.0 / 2);
  s = __builtin_fma(s * z, r, r), c = __builtin_fma(c, z, 1.0);
  int64_t turn;
  __builtin_memcpy(&turn, &shifted, sizeof turn);  // n is in its low bits
  turn += quarters;
  const double value = turn & 1 ? c : s;
  return (float)(turn & 2 ? -value : value);
}

template <class Vector>
inline Vector sines(Vector x, int64_t quarters) {
  constexpr int lanes = sizeof(Vector) / sizeof(float);
  alignas(Vector) float values[lanes];
  __builtin_memcpy(values, &x, sizeof x);
  for (float& value : values) value = sine(value, quarters);
  __builtin_memcpy(&x, values, sizeof x);
  return x;
}

}  // namespace

extern "C" {

bool aoti_torch_grad_mode_is_enabled() { return grad_mode; }
void aoti_torch_grad_mode_set_enabled(bool enabled) { grad_mode = enabled; }

void aoti_torch_check(bool holds, const char* function, const char* file, uint32_t line, const char* message) {
  if (!holds) throw std::runtime_error(std::string(message) + " (" + function + ", " + file + ":" + std::to_string(line) + ")");
}

// Sleef's names, which Inductor's vectors use. It promises 3.5 ulp for sines, and 1 for tanh, which is within a few here.
#if defined(__AVX512F__)
__m512 Sleef_sinf16_u35(__m512 x) { return sines(x, 0); }
__m512 Sleef_cosf16_u35(__m512 x) { return sines(x, 1); }
__m512 Sleef_tanhf16_u10(__m512 x) { return pllm::program::tanh(x); }
#else
__m256 Sleef_tanhf8_u10(__m256 x) { return pllm::program::tanh(x); }
#endif
__m256 Sleef_sinf8_u35(__m256 x) { return sines(x, 0); }
__m256 Sleef_cosf8_u35(__m256 x) { return sines(x, 1); }

}  // extern "C"
