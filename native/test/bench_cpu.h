// What the benchmarks of the CPU share: memory as the backend allocates it, random contents, what the machine's memory
// allows.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/execution.h"
#include "random.h"

namespace bench {

using skv::cpu::Execution;
using skv::cpu::InstructionSet;
using skv::cpu::ThreadPool;
using skv::cpu::Workspace;

constexpr double kGiga = 1e9;

// The best of several, and the result of the last must have been looked at by the caller.
inline double best_seconds(int repeats, const std::function<void()>& work) {
  double best = INFINITY;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t count)
      : count_(count), memory_(static_cast<T*>(std::aligned_alloc(kAlignment, bytes_of(count))), &std::free) {
    if (!memory_) {
      std::fprintf(stderr, "no memory for %lld elements\n", static_cast<long long>(count));
      std::exit(1);
    }
    // As the backend allocates: with small pages half of the time goes into address translation.
    (void)madvise(memory_.get(), bytes_of(count), MADV_HUGEPAGE);
  }
  T* data() { return memory_.get(); }
  std::int64_t count() const { return count_; }
  T& operator[](std::int64_t i) { return memory_.get()[i]; }

 private:
  static constexpr std::size_t kAlignment = 1 << 21;
  static std::size_t bytes_of(std::int64_t count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::int64_t count_;
  std::unique_ptr<T, decltype(&std::free)> memory_;
};

using Half = std::uint16_t;  // bf16

inline Half to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<Half>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(Half x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

inline void fill(ThreadPool& pool, Buffer<Half>& to, std::uint64_t seed, float deviation) {
  pool.parallel_ranges(to.count() / 4, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const skv::RandomNormals normals = skv::random_normals(static_cast<std::uint64_t>(i), seed);
      for (int j = 0; j < 4; ++j) {
        to[4 * i + j] = to_bf16(normals.at[j] * deviation);
      }
    }
  });
}

inline void fill(Buffer<float>& to, std::uint64_t seed, float deviation) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  for (std::int64_t i = 0; i < to.count(); ++i) {
    to[i] = normal(random);
  }
}

// The instruction set of that number, if this processor has it; -1: its best.
inline InstructionSet chosen_set(std::int64_t number) {
  const auto best = static_cast<std::int64_t>(skv::cpu::best_instruction_set());
  if (number > best) {
    std::fprintf(stderr, "this processor has instruction sets 0 to %d\n", static_cast<int>(best));
    std::exit(2);
  }
  return static_cast<InstructionSet>(number < 0 ? best : number);
}

struct Machine {
  double read = 0, copy = 0;  // bytes a second; a copied byte counts twice
};

inline Machine measure(ThreadPool& pool) {
  constexpr std::int64_t kBytes = std::int64_t{1} << 28, kPiece = std::int64_t{1} << 20;
  Buffer<std::uint64_t> from(kBytes / 8), to(kBytes / 8);
  std::memset(from.data(), 1, kBytes);
  std::memset(to.data(), 2, kBytes);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(kBytes / kPiece));
  constexpr int kRepeats = 10;
  Machine machine;
  machine.read = kBytes / best_seconds(kRepeats, [&] {
                   pool.parallel_for(kBytes / kPiece, [&](std::int64_t piece) {
                     typedef std::uint64_t Words __attribute__((vector_size(64)));
                     Words sum[4] = {};
                     const Words* const words = reinterpret_cast<const Words*>(from.data() + piece * (kPiece / 8));
                     for (std::int64_t i = 0; i < kPiece / 64; i += 4) {
                       for (int j = 0; j < 4; ++j) {
                         sum[j] += words[i + j];
                       }
                     }
                     const Words all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
                     sums[static_cast<std::size_t>(piece)] = all[0] + all[7];
                   });
                 });
  machine.copy =
      2.0 * kBytes / best_seconds(kRepeats, [&] {
        // One large part a thread: memcpy then writes past the caches, which is the fastest copy.
        const std::int64_t part = kBytes / pool.threads() / 64 * 64;
        pool.parallel_for(pool.threads(), [&](std::int64_t i) {
          std::memcpy(to.data() + i * (part / 8), from.data() + i * (part / 8), static_cast<std::size_t>(part));
        });
      });
  if (sums[1] == 0 || to[7] != from[7]) {
    std::printf("memory does not hold what was written\n");
    std::exit(1);
  }
  return machine;
}

struct Rope {
  Buffer<float> coarse, fine;
  skv_rope table;
  Rope(int dim, std::int64_t positions)
      : coarse((positions / kFineRows + 1) * dim),
        fine(kFineRows * dim),
        table{coarse.data(),  fine.data(), static_cast<std::int32_t>(positions / kFineRows + 1), kFineRows, dim,
              SKV_HALF_SPLIT, 1.0F} {
    for (int i = 0; i < dim / 2; ++i) {
      const double frequency = std::pow(500000.0, -2.0 * i / dim);
      for (std::int64_t row = 0; row < table.coarse_rows; ++row) {
        coarse[row * dim + 2 * i] = static_cast<float>(std::cos(static_cast<double>(row * kFineRows) * frequency));
        coarse[row * dim + 2 * i + 1] = static_cast<float>(std::sin(static_cast<double>(row * kFineRows) * frequency));
      }
      for (int row = 0; row < kFineRows; ++row) {
        fine[row * dim + 2 * i] = static_cast<float>(std::cos(row * frequency));
        fine[row * dim + 2 * i + 1] = static_cast<float>(std::sin(row * frequency));
      }
    }
  }
  static constexpr int kFineRows = 1024;
};

inline void report(const char* what, double seconds, double bytes, double operations, const Machine& machine) {
  std::printf("%-34s %9.3f ms", what, seconds * 1e3);
  if (bytes > 0) {
    std::printf("  %7.1f MB %6.1f GB/s = %3.0f %% of copy, %3.0f %% of read", bytes / 1e6, bytes / seconds / kGiga,
                100 * bytes / seconds / machine.copy, 100 * bytes / seconds / machine.read);
  }
  if (operations > 0) {
    std::printf("  %8.1f GFLOP/s", operations / seconds / kGiga);
  }
  std::printf("\n");
  std::fflush(stdout);
}

inline bool finite(Buffer<float>& output) {
  for (std::int64_t i = 0; i < output.count(); ++i) {
    if (!std::isfinite(output[i])) {
      return false;
    }
  }
  return true;
}

inline void require_finite(Buffer<float>& output, const char* what) {
  if (!finite(output)) {
    std::printf("%s: the result is not finite\n", what);
    std::exit(1);
  }
}

class Runner {
 public:
  Runner(ThreadPool& pool, InstructionSet set) : pool_(pool), set_(set) {}

  template <class Params>
  double time(int repeats, const Params& p, void (*operation)(const Params&, Execution&),
              std::uint64_t (*workspace)(const Params&, const skv::cpu::ExecutionTraits&)) {
    const std::uint64_t bytes = workspace(p, {pool_.threads(), set_});
    Buffer<char> memory(static_cast<std::int64_t>(bytes) + 64);
    std::memset(memory.data(), 0, bytes);
    return best_seconds(repeats, [&] {
      Execution execution{pool_, Workspace(memory.data(), bytes), set_, no_path_};
      operation(p, execution);
    });
  }

 private:
  ThreadPool& pool_;
  InstructionSet set_;
  std::string no_path_;
};

}  // namespace bench
