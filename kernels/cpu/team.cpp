#include "team.h"

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "kernels.h"

namespace pllm {

namespace {

constexpr int64_t kLongestSpin = 200'000, kShortestSpin = 1'000;  // nanoseconds
constexpr int kMostShares = 64;
constexpr uint32_t kOpen = 1u << 31, kCallerSleeps = 1u << 30, kInside = kCallerSleeps - 1;

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }

// How long one thread spins before it sleeps: longer where that was enough, shorter where it was not. With a core for each
// member spinning always pays; where a neighbour has taken one, it only keeps the neighbour's victim from running.
class Patience {
 public:
  template <class Done>
  bool spin_until(Done done) {
    const int64_t end = now() + limit_;
    do {
      for (int i = 0; i < 16; i++) {
        if (done()) return limit_ = limit_ * 2 < kLongestSpin ? limit_ * 2 : kLongestSpin, true;
        _mm_pause();
      }
    } while (now() < end);
    limit_ = limit_ / 2 > kShortestSpin ? limit_ / 2 : kShortestSpin;
    return false;
  }

 private:
  int64_t limit_ = kLongestSpin;
};

// One loop at a time, in shares. `gate_` counts the helpers inside it, and says whether it is open to more: the caller closes it when
// the last piece has been taken, and waits only for those inside.
class Team {
 public:
  void run(int members, int64_t count, int64_t grain, LoopBody body, const void* context) {
    hire(members);
    body_ = body, context_ = context, pieces_ = (count + grain - 1) / grain, count_ = count, grain_ = grain, members_ = members;
    num_shares_ = members < kMostShares ? members : kMostShares;
    for (int i = 0; i < num_shares_; i++) {
      shares_[i].next.store(share_begin(i), std::memory_order_relaxed);
      shares_[i].end = share_begin(i + 1);
    }
    gate_.store(kOpen, std::memory_order_release);
    round_.fetch_add(1);
    if (sleepers_.load()) wake_all(round_);
    work(0);
    gate_.fetch_and(~kOpen);
    if (patience_.spin_until([this] { return gate_.load(std::memory_order_acquire) == 0; })) return;
    for (uint32_t gate = gate_.fetch_or(kCallerSleeps) | kCallerSleeps; gate & kInside; gate = gate_.load())
      sleep_while(gate_, gate);
    gate_.store(0);
  }

  void forget_helpers() { hired_ = 1, sleepers_ = 0; }

  uint32_t num_loops() const { return round_.load(std::memory_order_relaxed); }

 private:
  // Neighbouring pieces for each member, since most loops read memory in order and a stream that goes on is faster than one
  // that starts anew; then what the others have not got to yet.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  int64_t share_begin(int i) const { return pieces_ * i / num_shares_; }

  void work(int member) {
    for (int i = 0; i < num_shares_; i++) {
      Share& share = shares_[(member + i) % num_shares_];
      for (int64_t piece; (piece = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
        const int64_t begin = piece * grain_;
        body_(context_, member, begin, begin + grain_ < count_ ? begin + grain_ : count_);
      }
    }
  }

  void help(int member) {
    Patience patience;
    for (uint32_t seen = 0;;) {
      const auto changed = [&] { return round_.load(std::memory_order_acquire) != seen; };
      if (!patience.spin_until(changed)) {
        sleepers_.fetch_add(1);
        while (!changed()) sleep_while(round_, seen);
        sleepers_.fetch_sub(1);
      }
      seen = round_.load();
      uint32_t gate = gate_.load();
      while (gate & kOpen && !gate_.compare_exchange_weak(gate, gate + 1)) {
      }
      if (!(gate & kOpen)) continue;
      if (member < members_) work(member);
      if (((gate_.fetch_sub(1) - 1) & ~kOpen) == kCallerSleeps) wake_all(gate_);
    }
  }

  // Helpers are threads that never end; a loop that wants fewer leaves some out. One that cannot be started is done without.
  void hire(int members) {
    sigset_t all, before;
    sigfillset(&all);
    for (; hired_ < members; hired_++) {
      pthread_t thread;
      pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads that Python knows
      const int failed = pthread_create(&thread, nullptr, begin, (void*)(intptr_t)hired_);
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      if (failed) return;
      pthread_setname_np(thread, "pllm-helper");
      pthread_detach(thread);
    }
  }
  static void* begin(void* member);

  LoopBody body_ = nullptr;
  const void* context_ = nullptr;
  int64_t pieces_ = 0, count_ = 0, grain_ = 0;
  int members_ = 0, num_shares_ = 1, hired_ = 1;
  Patience patience_;
  Share shares_[kMostShares];
  alignas(64) std::atomic<uint32_t> gate_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  std::atomic<uint32_t> sleepers_{0};
};

Team team;
std::atomic_flag taken = ATOMIC_FLAG_INIT;

void* Team::begin(void* member) {
  team.help((int)(intptr_t)member);
  return nullptr;
}

// The helpers are the parent's: a child hires its own.
__attribute__((constructor)) void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] {
    team.forget_helpers();
    taken.clear();
  });
}

}  // namespace

void run_loop(int64_t count, int64_t grain, bool alone, LoopBody body, const void* context) {
  const int members = num_threads();
  if (alone || members == 1 || count <= grain || taken.test_and_set(std::memory_order_acquire)) {
    for (int64_t i = 0; i < count; i += grain) body(context, 0, i, i + grain < count ? i + grain : count);
    return;
  }
  team.run(members, count, grain, body, context);
  taken.clear(std::memory_order_release);
}

}  // namespace pllm

uint32_t pllm_num_loops(void) { return pllm::team.num_loops(); }
