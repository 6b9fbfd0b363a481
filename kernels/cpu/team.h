// The threads that the operators share: a loop's pieces go to whoever is free.
//
// Why not OpenMP's: libgomp's waiting threads either spin, and then a neighbour that has taken a core stalls every step by
// hundreds of milliseconds, or sleep, and then each of a step's two hundred loops pays for a wake-up (DECISIONS.md). Here a
// member spins for as long as spinning has paid lately, and a loop ends without the members that came too late for it.
#pragma once

#include <stdint.h>

namespace pllm {

int num_threads();  // of a loop: the calling thread and the helpers

// Works off [begin, end), a piece of the loop; member is 0 (the caller) to num_threads() - 1, and runs one piece at a time.
typedef void (*LoopBody)(const void* context, int member, int64_t begin, int64_t end);

// Runs body over [0, count) in pieces of at most `grain`, in any order, and returns when all are done: what the pieces wrote is
// then seen by the caller. With `alone`, or where another thread's loop has the helpers, the caller does all of it.
// Bodies start no loops of their own.
void run_loop(int64_t count, int64_t grain, bool alone, LoopBody body, const void* context);

namespace {

// The same, with a body of the caller's: body(member, begin, end).
template <class Body>
inline void loop(int64_t count, int64_t grain, bool alone, const Body& body) {
  const LoopBody call = [](const void* context, int member, int64_t begin, int64_t end) {
    (*(const Body*)context)(member, begin, end);
  };
  run_loop(count, grain, alone, call, &body);
}

}  // namespace

}  // namespace pllm

// Loops that were shared out since the start, modulo 2^32: a step's times of waiting for each other, to be counted.
extern "C" __attribute__((visibility("default"))) uint32_t pllm_num_loops(void);
