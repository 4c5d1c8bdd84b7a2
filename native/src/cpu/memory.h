// Host memory of a CPU context: what was handed out, so that a wrong address is refused and nothing leaks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "cpu/thread_pool.h"

namespace skv::cpu {

// Bytes of memory that this process may still use and may use at all (the container's limit counts).
struct MemoryBytes {
  std::uint64_t available, total;
};
MemoryBytes memory_bytes();

class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // Not touched; aligned to a cache line, to a huge page where that pays.
  void* allocate(std::uint64_t bytes);
  // Zeroed by all threads, so that the pages exist when the call returns.
  void* allocate_touched(std::uint64_t bytes, ThreadPool& pool);
  // Throws Error(SKV_INVALID_ARGUMENT) for an address that the matching call above did not return.
  void release(void* address);
  void release_touched(void* address);

  // The caller's own memory needs no pinning here, only the bookkeeping that finds mistakes.
  void add_registration(void* address, std::uint64_t bytes);
  void remove_registration(void* address);

 private:
  std::unordered_map<void*, std::uint64_t> allocated_;
  std::unordered_map<void*, std::uint64_t> touched_;
  std::unordered_map<void*, std::uint64_t> registered_;
};

}  // namespace skv::cpu
