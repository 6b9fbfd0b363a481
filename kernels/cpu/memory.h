// Memory that tensors are made of, theirs and their elements'.
#pragma once

#include <stddef.h>

extern "C" {

// At least `bytes` bytes, aligned to 64, and how many they are; null where there are none left.
void* pllm_take_memory(size_t bytes, size_t* taken);

// For whoever comes next in this thread. `taken`: as pllm_take_memory said, in whichever thread. Nothing for null.
void pllm_give_memory(void* memory, size_t taken);

}  // extern "C"
