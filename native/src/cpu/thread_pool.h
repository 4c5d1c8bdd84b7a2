// A context's own threads: exactly as many as were asked for, the calling one included.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace skv::cpu {

// One caller at a time. A loop inside a loop runs on the thread that meets it.
class ThreadPool {  // NOLINT(clang-analyzer-optin.performance.Padding): it keeps threads off each other's cache lines
 public:
  // How many processors this process may use.
  static int processors();

  // threads >= 1. Throws Error(SKV_OUT_OF_HOST_MEMORY) when the system gives no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index) once for every index in [0, count), in no particular order, and returns when all are
  // done. body(index, thread) also learns which of [0, threads()) runs it, for scratch memory. The first
  // exception ends the loop and comes out here. Allocates nothing.
  template <class Body>
  void parallel_for(std::int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(count, 1, const_cast<void*>(static_cast<const void*>(std::addressof(body))),
        [](void* context, std::int64_t begin, std::int64_t, int thread) {
          if constexpr (std::is_invocable_v<Plain&, std::int64_t, int>) {
            (*static_cast<Plain*>(context))(begin, thread);
          } else {
            (*static_cast<Plain*>(context))(begin);
          }
        });
  }

  // Calls body(begin, end), or body(begin, end, thread), on pieces of at most `grain` indices that cover
  // [0, count). Pieces begin at multiples of `grain`, so that they do not depend on the number of threads.
  template <class Body>
  void parallel_ranges(std::int64_t count, std::int64_t grain, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(count, grain, const_cast<void*>(static_cast<const void*>(std::addressof(body))),
        [](void* context, std::int64_t begin, std::int64_t end, int thread) {
          if constexpr (std::is_invocable_v<Plain&, std::int64_t, std::int64_t, int>) {
            (*static_cast<Plain*>(context))(begin, end, thread);
          } else {
            (*static_cast<Plain*>(context))(begin, end);
          }
        });
  }

  // As parallel_for, for indices whose neighbours share what they read: a thread takes up to `most` of them in a row,
  // fewer where threads would not get kShares turns each and end together.
  template <class Body>
  void parallel_neighbours(std::int64_t count, std::int64_t most, Body&& body) {
    constexpr std::int64_t kShares = 4;
    const std::int64_t in_a_row = std::clamp<std::int64_t>(count / (threads() * kShares), 1, most);
    parallel_ranges(count, in_a_row, [&](std::int64_t begin, std::int64_t end, int thread) {
      for (std::int64_t i = begin; i < end; ++i) {
        if constexpr (std::is_invocable_v<Body&, std::int64_t, int>) {
          body(i, thread);
        } else {
          body(i);
        }
      }
    });
  }

 private:
  using Piece = void (*)(void* context, std::int64_t begin, std::int64_t end, int thread);

  void run(std::int64_t count, std::int64_t grain, void* context, Piece piece);
  void take_pieces(int thread) noexcept;
  void work(int thread) noexcept;
  void stop() noexcept;

  // The gate holds, in one word: how many workers are inside the current loop, whether it is closed to
  // more, and which loop it is. A worker that wakes late finds the gate closed and is not waited for.
  static constexpr std::uint32_t kClosed = 1U << 15;
  static constexpr std::uint32_t kInside = kClosed - 1;
  static constexpr std::uint32_t kNextLoop = 1U << 16;
  static constexpr std::size_t kCacheLine = 64;

  alignas(kCacheLine) std::atomic<std::uint32_t> gate_{kClosed};
  alignas(kCacheLine) std::atomic<std::int64_t> next_{0};
  alignas(kCacheLine) std::int64_t count_ = 0;
  std::int64_t grain_ = 1;
  void* context_ = nullptr;
  Piece piece_ = nullptr;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  std::atomic<bool> stopping_{false};
  bool may_spin_ = true;
  std::vector<std::thread> workers_;
};

}  // namespace skv::cpu
