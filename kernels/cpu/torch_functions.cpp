// What a compiled program calls of torch beside its tensors, with torch's names and meanings; see torch_tensors.cpp. Linked into
// the program alone, and compiled for its instruction set.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include <stdexcept>
#include <string>

#define PLLM_ISA program
#include "simd.h"

namespace {

thread_local bool grad_mode = false;

// Of each element: sines are taken of a step's positions, once.
template <class Vector, float (*function)(float)>
inline Vector each(Vector x) {
  constexpr int lanes = sizeof(Vector) / sizeof(float);
  alignas(Vector) float values[lanes];
  __builtin_memcpy(values, &x, sizeof x);
  for (float& value : values) value = function(value);
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

// Sleef's names, which Inductor's vectors use: sines within 1 ulp where Sleef promises 3.5, tanh within a few where it promises 1.
#if defined(__AVX512F__)
__m512 Sleef_sinf16_u35(__m512 x) { return each<__m512, sinf>(x); }
__m512 Sleef_cosf16_u35(__m512 x) { return each<__m512, cosf>(x); }
__m512 Sleef_tanhf16_u10(__m512 x) { return pllm::program::tanh(x); }
#else
__m256 Sleef_tanhf8_u10(__m256 x) { return pllm::program::tanh(x); }
#endif
__m256 Sleef_sinf8_u35(__m256 x) { return each<__m256, sinf>(x); }
__m256 Sleef_cosf8_u35(__m256 x) { return each<__m256, cosf>(x); }

}  // extern "C"
