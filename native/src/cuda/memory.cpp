#include "cuda/memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cuda/status.h"

namespace skv::cuda {
namespace {

constexpr std::uint64_t kHugePage = 2u << 20;
// The first touch is bounded by the kernel clearing pages; more threads than this gain nothing.
constexpr unsigned kTouchThreads = 16;
constexpr std::uint64_t kBytesPerThread = 64u << 20;

[[noreturn]] void out_of_host_memory(std::uint64_t bytes, const std::string& why) {
  throw Error(SKV_OUT_OF_HOST_MEMORY, "allocating " + std::to_string(bytes) + " bytes of pinned host memory: " + why);
}

// Bytes of one line of /proc/meminfo, or 0.
std::uint64_t memory_line(const char* label) {
  std::FILE* file = std::fopen("/proc/meminfo", "r");
  if (!file) {
    return 0;
  }
  char line[256];
  std::uint64_t bytes = 0;
  const std::size_t length = std::strlen(label);
  while (std::fgets(line, sizeof line, file)) {
    if (std::strncmp(line, label, length) == 0 && line[length] == ':') {
      unsigned long long kilobytes = 0;
      if (std::sscanf(line + length + 1, "%llu", &kilobytes) == 1) {
        bytes = kilobytes * 1024;
      }
      break;
    }
  }
  std::fclose(file);
  return bytes;
}

// Memory that is promised by mmap and missing at the first touch ends the process, so it is looked for
// here, in steps: a virtual machine whose memory grows as it is used shows less than it will have.
constexpr std::uint64_t kTouchStep = 4ull << 30;

bool fits_now(std::uint64_t bytes) {
  const std::uint64_t available = memory_line("MemAvailable");
  return available == 0 || bytes <= available;
}

void touch(std::byte* base, std::uint64_t bytes) {
  const std::uint64_t page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const unsigned processors = std::max(1u, std::thread::hardware_concurrency());
  const unsigned threads = static_cast<unsigned>(
      std::clamp<std::uint64_t>(bytes / kBytesPerThread, 1, std::min(processors, kTouchThreads)));
  const std::uint64_t share = (bytes / threads + kHugePage - 1) / kHugePage * kHugePage;
  const auto work = [=](unsigned thread) {
    const std::uint64_t begin = std::min(bytes, share * thread);
    const std::uint64_t end = std::min(bytes, begin + share);
    for (std::uint64_t offset = begin; offset < end; offset += page) {
      *reinterpret_cast<volatile std::byte*>(base + offset) = std::byte{0};
    }
  };
  std::vector<std::thread> team;
  unsigned started = 1;
  try {
    team.reserve(threads - 1);
    for (; started < threads; ++started) {
      team.emplace_back(work, started);
    }
  } catch (const std::system_error&) {
    // The caller's thread does the parts that found no thread.
  }
  work(0);
  for (unsigned thread = started; thread < threads; ++thread) {
    work(thread);
  }
  for (std::thread& member : team) {
    member.join();
  }
}

}  // namespace

void* PinnedMemory::allocate(std::uint64_t bytes) {
  const std::uint64_t rounded = (std::max<std::uint64_t>(bytes, 1) + kHugePage - 1) / kHugePage * kHugePage;
  if (rounded < bytes || rounded > (std::uint64_t{1} << 47)) {
    out_of_host_memory(bytes, "more than an address can reach");
  }
  // One huge page more, so that the block can begin on one.
  const std::uint64_t mapped = rounded + kHugePage;
  void* const raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw != MAP_FAILED) {
    const auto start = reinterpret_cast<std::uintptr_t>(raw);
    const auto aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
    if (aligned > start) {
      munmap(raw, aligned - start);
    }
    if (start + mapped > aligned + rounded) {
      munmap(reinterpret_cast<void*>(aligned + rounded), start + mapped - (aligned + rounded));
    }
    auto* const base = reinterpret_cast<std::byte*>(aligned);
    (void)madvise(base, rounded, MADV_HUGEPAGE);
    bool complete = true;
    for (std::uint64_t done = 0; done < rounded && complete; done += kTouchStep) {
      const std::uint64_t step = std::min(kTouchStep, rounded - done);
      complete = fits_now(step);
      if (complete) {
        touch(base + done, step);
      }
    }
    if (!complete) {
      munmap(base, rounded);
      out_of_host_memory(bytes, "the system has " + std::to_string(memory_line("MemAvailable")) + " bytes available");
    }
    const cudaError_t code = cudaHostRegister(base, rounded, cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (code == cudaSuccess) {
      try {
        blocks_.emplace(base, Block{base, rounded, Origin::kMapped});
      } catch (...) {
        (void)cudaHostUnregister(base);
        munmap(base, rounded);
        throw;
      }
      return base;
    }
    munmap(base, rounded);
    (void)cudaGetLastError();
    if (code != cudaErrorMemoryAllocation && code != cudaErrorNotSupported && code != cudaErrorInvalidValue) {
      raise(code, "pinning host memory");
    }
  }
  void* address = nullptr;
  const cudaError_t code = cudaHostAlloc(&address, rounded, cudaHostAllocPortable | cudaHostAllocMapped);
  if (code == cudaErrorMemoryAllocation || code == cudaErrorInvalidValue) {
    (void)cudaGetLastError();
    out_of_host_memory(bytes, cudaGetErrorString(code));
  }
  check(code, "allocating pinned host memory");
  std::memset(address, 0, rounded);
  blocks_.emplace(address, Block{address, rounded, Origin::kDriver});
  return address;
}

PinnedMemory::Block PinnedMemory::forget(void* address, bool callers) {
  const auto found = blocks_.find(address);
  if (found == blocks_.end() || (found->second.origin == Origin::kCaller) != callers) {
    throw Error(SKV_INVALID_ARGUMENT, callers ? "the address was not registered with this context"
                                              : "the address was not allocated by this context as host memory");
  }
  const Block block = found->second;
  blocks_.erase(found);
  return block;
}

void PinnedMemory::release(void* address) {
  const Block block = forget(address, false);
  if (block.origin == Origin::kDriver) {
    check(cudaFreeHost(block.base), "freeing pinned host memory");
    return;
  }
  const cudaError_t code = cudaHostUnregister(block.base);
  // The pages go back even after a fault of the device.
  munmap(block.base, block.bytes);
  check(code, "unpinning host memory");
}

void PinnedMemory::pin(void* address, std::uint64_t bytes) {
  const cudaError_t code = cudaHostRegister(address, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    throw Error(SKV_OUT_OF_HOST_MEMORY, "pinning " + std::to_string(bytes) + " bytes of the caller's memory");
  }
  if (code == cudaErrorHostMemoryAlreadyRegistered || code == cudaErrorInvalidValue) {
    (void)cudaGetLastError();
    throw Error(SKV_INVALID_ARGUMENT, std::string("pinning the caller's memory: ") + cudaGetErrorString(code));
  }
  check(code, "pinning the caller's memory");
  blocks_.emplace(address, Block{address, bytes, Origin::kCaller});
}

void PinnedMemory::unpin(void* address) {
  const Block block = forget(address, true);
  check(cudaHostUnregister(block.base), "unpinning the caller's memory");
}

}  // namespace skv::cuda
