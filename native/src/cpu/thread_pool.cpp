#include "cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include "error.h"

namespace skv::cpu {
namespace {

// Long enough to bridge the gap between two operations of a layer, short enough to be nothing when idle.
constexpr std::chrono::microseconds kSpin{50};

// The pool whose loop this thread is inside of, and as which of its threads: a nested loop must not wait for
// its own thread, and stays with that thread's scratch memory.
struct Inside {
  const ThreadPool* pool = nullptr;
  int thread = 0;
};
thread_local Inside inside;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `word` is no longer `old`: first by looking, then asleep.
void await_change(const std::atomic<std::uint32_t>& word, std::uint32_t old, bool may_spin) {
  if (may_spin) {
    constexpr int kLooksPerClock = 32;
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int look = 0; look < kLooksPerClock; ++look) {
        if (word.load(std::memory_order_acquire) != old) {
          return;
        }
        relax();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  word.wait(old, std::memory_order_acquire);
}

}  // namespace

int ThreadPool::processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) : may_spin_(threads <= processors()) {
  try {
    workers_.reserve(static_cast<std::size_t>(threads) - 1);
    for (int thread = 1; thread < threads; ++thread) {
      workers_.emplace_back([this, thread] { work(thread); });
    }
  } catch (const std::system_error& error) {
    const std::size_t started = workers_.size() + 1;
    stop();
    throw Error(SKV_OUT_OF_HOST_MEMORY, "starting thread " + std::to_string(started + 1) + " of " +
                                            std::to_string(threads) + " failed: " + error.what());
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() noexcept {
  stopping_.store(true, std::memory_order_relaxed);
  gate_.fetch_add(kNextLoop, std::memory_order_release);
  gate_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
  workers_.clear();
}

void ThreadPool::take_pieces(int thread) noexcept {
  const Inside outer = inside;
  inside = {this, thread};
  try {
    for (;;) {
      const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= count_) {
        break;
      }
      piece_(context_, begin, std::min(begin + grain_, count_), thread);
    }
  } catch (...) {
    next_.store(count_, std::memory_order_relaxed);
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) {
      failure_ = std::current_exception();
    }
  }
  inside = outer;
}

void ThreadPool::work(int thread) noexcept {
  std::uint32_t seen = gate_.load(std::memory_order_acquire) | kClosed;
  for (;;) {
    std::uint32_t gate = gate_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) {
      return;
    }
    const bool is_new = (gate & ~(kInside | kClosed)) != (seen & ~(kInside | kClosed));
    if (!is_new || (gate & kClosed) != 0) {
      await_change(gate_, gate, may_spin_);
      continue;
    }
    if (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
      continue;
    }
    seen = gate;
    take_pieces(thread);
    const std::uint32_t left = gate_.fetch_sub(1, std::memory_order_acq_rel) - 1;
    if ((left & kClosed) != 0 && (left & kInside) == 0) {
      gate_.notify_all();
    }
  }
}

void ThreadPool::run(std::int64_t count, std::int64_t grain, void* context, Piece piece) {
  if (count <= 0) {
    return;
  }
  const std::int64_t pieces = (count - 1) / grain + 1;
  const bool nested = inside.pool == this;
  if (nested || workers_.empty() || pieces == 1) {
    const int thread = nested ? inside.thread : 0;
    for (std::int64_t begin = 0; begin < count; begin += grain) {
      piece(context, begin, std::min(begin + grain, count), thread);
    }
    return;
  }
  count_ = count;
  grain_ = grain;
  context_ = context;
  piece_ = piece;
  failure_ = nullptr;
  next_.store(0, std::memory_order_relaxed);
  // No worker is inside a closed gate, so nobody reads the fields above until the gate opens.
  const std::uint32_t closed = gate_.load(std::memory_order_relaxed);
  gate_.store((closed & ~(kClosed | kInside)) + kNextLoop, std::memory_order_release);
  gate_.notify_all();
  take_pieces(0);
  std::uint32_t gate = gate_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
  while ((gate & kInside) != 0) {
    await_change(gate_, gate, may_spin_);
    gate = gate_.load(std::memory_order_acquire);
  }
  if (failure_) {
    std::exception_ptr failure = nullptr;
    std::swap(failure, failure_);
    std::rethrow_exception(failure);
  }
}

}  // namespace skv::cpu
