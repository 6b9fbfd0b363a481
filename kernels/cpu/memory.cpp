// Memory of a program's tensors, which a thread keeps for its next ones: no step of the steady state asks the system for any.
// The C library gives large blocks back once they are free, and every step of a long prompt would meet its pages anew: 12,000
// faults of 512 tokens.
//
// A block is taken by the best fit among those kept, up to four times what is asked for, so that steps of fewer tokens live on the
// blocks of larger ones. What would make all of it, in use and kept, more than half as much again as was ever in use at once, is given
// back, the longest unused first: sizes that rise from step to step leave no block of each. Small ones, of which tensors themselves
// are made, are all of one size.
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "api.h"

namespace {

constexpr size_t kSmall = 512, kMostTimes = 4, kAlignment = 64;
constexpr size_t kPage = 4096, kMapped = 1 << 20;  // from so many bytes on a block is mapped by itself: given back, it is gone
constexpr size_t kAlways = 1 << 20;  // bytes that may be kept in any case
constexpr int kMostBlocks = 256, kMostSmall = 4096;

struct Block {
  char* memory;
  size_t bytes;
  uint64_t turn;  // in which it was given
};

void release(char* memory, size_t bytes) {
  if (bytes >= kMapped) munmap(memory, bytes);
  else free(memory);
}

struct Kept {
  Block blocks[kMostBlocks];  // the smallest first
  int count = 0, small_count = 0;
  void* small = nullptr;  // each begins with where the next is
  size_t held = 0, out = 0, most = 0;  // bytes that are kept, that are in use, and that were at once; of blocks
  uint64_t turn = 0;

  ~Kept() {
    for (; count; count--) release(blocks[count - 1].memory, blocks[count - 1].bytes);
    while (small) free(pop());
  }
  void* pop() {
    void* memory = small;
    memcpy(&small, memory, sizeof small);
    small_count--;
    return memory;
  }
  void push(void* memory) {
    memcpy(memory, &small, sizeof small);
    small = memory;
    small_count++;
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
  Block remove(int i) {
    const Block block = blocks[i];
    memmove(blocks + i, blocks + i + 1, sizeof(Block) * (size_t)(--count - i));
    held -= block.bytes;
    return block;
  }
  void add(char* memory, size_t bytes) {
    const int i = first_of(bytes);
    memmove(blocks + i + 1, blocks + i, sizeof(Block) * (size_t)(count++ - i));
    blocks[i] = {memory, bytes, turn++};
    held += bytes;
  }
  void free_oldest() {
    int oldest = 0;
    for (int i = 1; i < count; i++)
      if (blocks[i].turn < blocks[oldest].turn) oldest = i;
    const Block block = remove(oldest);
    release(block.memory, block.bytes);
  }
};
thread_local Kept kept;

void* fresh(size_t bytes, size_t* taken) {
  if (bytes > SIZE_MAX - kPage) return nullptr;
  const size_t unit = bytes > kMapped - kAlignment ? kPage : kAlignment;
  *taken = (bytes + unit - 1) / unit * unit;
  if (*taken < kMapped) return aligned_alloc(kAlignment, *taken);
  void* memory = mmap(nullptr, *taken, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

}  // namespace

extern "C" {

PLLM_EXPORT void* pllm_take_memory(size_t bytes, size_t* taken) {
  Kept& mine = kept;
  if (bytes <= kSmall) return mine.small ? (*taken = kSmall, mine.pop()) : fresh(kSmall, taken);
  const int i = mine.first_of(bytes);
  const bool fits = i < mine.count && mine.blocks[i].bytes / kMostTimes <= bytes;
  const Block block = fits ? mine.remove(i) : Block{(char*)fresh(bytes, taken), *taken, 0};
  if (!block.memory) return nullptr;
  *taken = block.bytes;
  mine.out += block.bytes;
  if (mine.out > mine.most) mine.most = mine.out;
  return block.memory;
}

PLLM_EXPORT void pllm_give_memory(void* memory, size_t taken) {
  Kept& mine = kept;
  if (!memory) return;
  if (taken == kSmall) return mine.small_count < kMostSmall ? mine.push(memory) : free(memory);
  mine.out -= taken < mine.out ? taken : mine.out;  // it may be another thread's
  if (mine.count == kMostBlocks) mine.free_oldest();
  mine.add((char*)memory, taken);
  while (mine.count && mine.out + mine.held > mine.most + mine.most / 2 + kAlways) mine.free_oldest();
}

}  // extern "C"
