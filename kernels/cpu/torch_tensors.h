// The word that our own tensors begin with: where torch's begin with an address, and no address has these upper bits.
#pragma once

#define PLLM_TENSOR_MARK UINT64_C(0xf11d7e50fa11c0de)
