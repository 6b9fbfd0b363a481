// What a compiled program calls of torch beside its tensors, with torch's names and meanings; see torch_tensors.cpp. Linked into
// the program alone, and compiled for its instruction set.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include <stdexcept>
#include <string>

namespace {

thread_local bool grad_mode = false;

// Of each element. Programs take the sines of a step's positions, once: not worth a vector's worth of code.
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

// Sleef's names, which Inductor's vectors use; within 1 ulp where Sleef promises 3.5.
#if defined(__AVX512F__)
__m512 Sleef_sinf16_u35(__m512 x) { return each<__m512, sinf>(x); }
__m512 Sleef_cosf16_u35(__m512 x) { return each<__m512, cosf>(x); }
#endif
__m256 Sleef_sinf8_u35(__m256 x) { return each<__m256, sinf>(x); }
__m256 Sleef_cosf8_u35(__m256 x) { return each<__m256, cosf>(x); }

}  // extern "C"
