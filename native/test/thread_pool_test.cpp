// The pool: every index once, exactly as many threads as asked for, exceptions come out, loops may nest, and
// a pool survives being left idle and being used in quick succession.
#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "error.h"

using skv::cpu::ThreadPool;

namespace {

int threads_of_process() {
  int threads = 0;
  if (std::FILE* status = std::fopen("/proc/self/status", "r")) {
    char line[256];
    while (std::fgets(line, sizeof(line), status)) {
      if (std::sscanf(line, "Threads: %d", &threads) == 1) {
        break;
      }
    }
    std::fclose(status);
  }
  return threads;
}

void test_coverage(ThreadPool& pool, std::mt19937_64& random) {
  for (int round = 0; round < 300; ++round) {
    const std::int64_t count = static_cast<std::int64_t>(random() % 1000);
    const std::int64_t grain = 1 + static_cast<std::int64_t>(random() % 50);
    std::vector<int> visits(static_cast<std::size_t>(count), 0);
    bool threads_right = true;
    pool.parallel_ranges(count, grain, [&](std::int64_t begin, std::int64_t end, int thread) {
      if (thread < 0 || thread >= pool.threads() || begin % grain != 0 || end - begin > grain) {
        threads_right = false;
      }
      for (std::int64_t i = begin; i < end; ++i) {
        ++visits[static_cast<std::size_t>(i)];
      }
    });
    bool once = true;
    for (const int visited : visits) {
      once &= visited == 1;
    }
    CHECK(once && threads_right);
    std::fill(visits.begin(), visits.end(), 0);
    pool.parallel_neighbours(count, grain, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
    CHECK(std::all_of(visits.begin(), visits.end(), [](int visited) { return visited == 1; }));
  }
}

// No two pieces that run at once share a thread number, also from inside a loop.
void test_scratch(ThreadPool& pool) {
  std::vector<std::atomic<int>> inside(static_cast<std::size_t>(pool.threads()));
  std::atomic<int> clashes{0};
  std::atomic<std::int64_t> sum{0};
  pool.parallel_for(200, [&](std::int64_t i, int thread) {
    if (inside[static_cast<std::size_t>(thread)].fetch_add(1) != 0) {
      ++clashes;
    }
    pool.parallel_for(10, [&](std::int64_t j, int nested) {
      if (nested != thread) {
        ++clashes;
      }
      sum += i * j;
    });
    --inside[static_cast<std::size_t>(thread)];
  });
  CHECK_EQUAL(clashes.load(), 0);
  CHECK_EQUAL(sum.load(), 199 * 200 / 2 * 45);
}

void test_exceptions(ThreadPool& pool) {
  for (int round = 0; round < 50; ++round) {
    bool caught = false;
    try {
      pool.parallel_for(100, [&](std::int64_t i) {
        if (i == 37) {
          throw skv::Error(SKV_UNSUPPORTED, "thrown inside");
        }
      });
    } catch (const skv::Error& error) {
      caught = error.status() == SKV_UNSUPPORTED;
    }
    CHECK(caught);
    std::atomic<int> done{0};
    pool.parallel_for(100, [&](std::int64_t) { ++done; });
    CHECK_EQUAL(done.load(), 100);
  }
}

void test_idle(ThreadPool& pool) {
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the workers sleep by now
    std::atomic<int> done{0};
    pool.parallel_for(64, [&](std::int64_t) { ++done; });
    CHECK_EQUAL(done.load(), 64);
  }
}

}  // namespace

int main() {
  std::mt19937_64 random = check::fresh_generator();
  // A sanitizer starts a thread of its own with the first one of the program.
  std::thread([] {}).join();
  const int before = threads_of_process();
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK_EQUAL(pool.threads(), threads);
    CHECK_EQUAL(threads_of_process(), before + threads - 1);
    test_coverage(pool, random);
    test_scratch(pool);
    test_exceptions(pool);
    test_idle(pool);
  }
  CHECK_EQUAL(threads_of_process(), before);
  {
    // Two pools at once, each with its own caller.
    ThreadPool one(2), other(2);
    std::atomic<std::int64_t> sum{0};
    std::thread caller([&] {
      for (int round = 0; round < 200; ++round) {
        other.parallel_for(50, [&](std::int64_t i) { sum += i; });
      }
    });
    for (int round = 0; round < 200; ++round) {
      one.parallel_for(50, [&](std::int64_t i) { sum += i; });
    }
    caller.join();
    CHECK_EQUAL(sum.load(), 400 * 49 * 50 / 2);
  }
  {
    ThreadPool pool(2);
    constexpr int kLoops = 20000;
    const auto begin = std::chrono::steady_clock::now();
    for (int loop = 0; loop < kLoops; ++loop) {
      pool.parallel_for(2, [](std::int64_t) {});
    }
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
    std::printf("%.2f us a loop in quick succession\n", time.count() / kLoops);
  }
  return check::verdict();
}
