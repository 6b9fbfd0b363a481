// Memory of a program's tensors, which a thread keeps for its next ones: no step of the steady state asks the system for any.
// The C library gives large blocks back once they are free, and every step of a long prompt would meet its pages anew: 12,000
// faults of 512 tokens.
//
// A block is taken by the best fit among those kept, up to four times what is asked for, so that steps of fewer tokens live on the
// blocks of larger ones. Small ones, of which tensors themselves are made, are all of one size.
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"

namespace {

constexpr size_t kSmall = 512, kMostTimes = 4, kAlignment = 64;
constexpr int kMostBlocks = 256;  // kept; more are given back

struct Block {
  char* memory;
  size_t bytes;
};

struct Kept {
  Block blocks[kMostBlocks];  // the smallest first
  int count = 0;
  void* small = nullptr;  // each begins with where the next is

  ~Kept() {
    while (count) free(blocks[--count].memory);
    while (small) free(pop());
  }
  void* pop() {
    void* memory = small;
    memcpy(&small, memory, sizeof small);
    return memory;
  }
  void push(void* memory) {
    memcpy(memory, &small, sizeof small);
    small = memory;
  }
  int first_of(size_t bytes) const {  // that has so many, at least
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (blocks[middle].bytes < bytes) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};
thread_local Kept kept;

void* fresh(size_t bytes, size_t* taken) {
  if (bytes > SIZE_MAX - kAlignment) return nullptr;
  *taken = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return aligned_alloc(kAlignment, *taken);
}

}  // namespace

extern "C" {

PLLM_EXPORT void* pllm_take_memory(size_t bytes, size_t* taken) {
  Kept& mine = kept;
  if (bytes <= kSmall) return mine.small ? (*taken = kSmall, mine.pop()) : fresh(kSmall, taken);
  const int i = mine.first_of(bytes);
  if (i == mine.count || mine.blocks[i].bytes / kMostTimes > bytes) return fresh(bytes, taken);
  const Block block = mine.blocks[i];
  memmove(mine.blocks + i, mine.blocks + i + 1, sizeof(Block) * (size_t)(--mine.count - i));
  *taken = block.bytes;
  return block.memory;
}

PLLM_EXPORT void pllm_give_memory(void* memory, size_t taken) {
  Kept& mine = kept;
  if (!memory) return;
  if (taken == kSmall) return mine.push(memory);
  if (mine.count == kMostBlocks) return free(memory);
  const int i = mine.first_of(taken);
  memmove(mine.blocks + i + 1, mine.blocks + i, sizeof(Block) * (size_t)(mine.count++ - i));
  mine.blocks[i] = {(char*)memory, taken};
}

}  // extern "C"
