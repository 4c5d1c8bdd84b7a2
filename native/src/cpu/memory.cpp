#include "cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "error.h"

namespace skv::cpu {
namespace {

constexpr std::uint64_t kCacheLine = 64;
constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20;
// Below this a huge page wastes more than it gives.
constexpr std::uint64_t kWorthHugePages = 4 * kHugePage;

std::uint64_t number_in(const char* file, std::uint64_t otherwise) {
  std::ifstream stream(file);
  std::uint64_t value = 0;
  return stream >> value ? value : otherwise;
}

[[noreturn]] void refuse(std::uint64_t bytes, std::uint64_t limit, const char* what) {
  throw Error(SKV_OUT_OF_HOST_MEMORY, "out of host memory: " + std::to_string(bytes) + " bytes asked for, " +
                                          std::to_string(limit) + " " + what);
}

void* aligned(std::uint64_t bytes, std::uint64_t limit, const char* what) {
  if (bytes > limit) {
    refuse(bytes, limit, what);
  }
  const std::uint64_t alignment = bytes >= kWorthHugePages ? kHugePage : kCacheLine;
  const std::uint64_t rounded = std::max(kCacheLine, (bytes + kCacheLine - 1) / kCacheLine * kCacheLine);
  void* address = nullptr;
  if (posix_memalign(&address, alignment, rounded) != 0) {
    refuse(bytes, limit, what);
  }
  if (alignment == kHugePage) {
    (void)madvise(address, rounded, MADV_HUGEPAGE);  // a wish: without huge pages it is only slower
  }
  return address;
}

void take(std::unordered_map<void*, std::uint64_t>& known, void* address, const char* what) {
  if (known.erase(address) == 0) {
    throw Error(SKV_INVALID_ARGUMENT, std::string("the address is not one of ") + what + " of this context");
  }
}

}  // namespace

MemoryBytes memory_bytes() {
  MemoryBytes memory = {};
  const std::uint64_t page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  memory.total = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * page;
  memory.available = static_cast<std::uint64_t>(sysconf(_SC_AVPHYS_PAGES)) * page;
  std::ifstream information("/proc/meminfo");
  for (std::string name; information >> name;) {
    std::uint64_t kibibytes = 0;
    if (name == "MemAvailable:" && information >> kibibytes) {
      memory.available = kibibytes * 1024;
      break;
    }
    information.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  const std::uint64_t limit = number_in("/sys/fs/cgroup/memory.max", memory.total);
  if (limit < memory.total) {
    memory.total = limit;
    const std::uint64_t used = number_in("/sys/fs/cgroup/memory.current", 0);
    memory.available = std::min(memory.available, limit - std::min(limit, used));
  }
  return memory;
}

Memory::~Memory() {
  for (const auto& [address, bytes] : allocated_) {
    std::free(address);
  }
  for (const auto& [address, bytes] : touched_) {
    std::free(address);
  }
}

void* Memory::allocate(std::uint64_t bytes) {
  // The system would promise more than it has and end the process when the promise is called in.
  void* const address = aligned(bytes, memory_bytes().total, "exist");
  try {
    allocated_.emplace(address, bytes);
  } catch (...) {
    std::free(address);
    throw;
  }
  return address;
}

void* Memory::allocate_touched(std::uint64_t bytes, ThreadPool& pool) {
  void* const address = aligned(bytes, memory_bytes().available, "are available");
  try {
    touched_.emplace(address, bytes);
  } catch (...) {
    std::free(address);
    throw;
  }
  pool.parallel_ranges(static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(kHugePage),
                       [&](std::int64_t begin, std::int64_t end) {
                         std::memset(static_cast<char*>(address) + begin, 0, static_cast<std::size_t>(end - begin));
                       });
  return address;
}

void Memory::release(void* address) {
  take(allocated_, address, "device memory");
  std::free(address);
}

void Memory::release_touched(void* address) {
  take(touched_, address, "host memory");
  std::free(address);
}

void Memory::add_registration(void* address, std::uint64_t bytes) {
  if (!registered_.emplace(address, bytes).second) {
    throw Error(SKV_INVALID_ARGUMENT, "the memory is registered already");
  }
}

void Memory::remove_registration(void* address) {
  take(registered_, address, "registered host memory");
}

}  // namespace skv::cpu
