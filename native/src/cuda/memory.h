// Pinned host memory: pages first, then registration.
#pragma once

#include <cstdint>
#include <unordered_map>

namespace skv::cuda {

// Host memory that a context has handed out or pinned. Not tied to a stream; addresses are the same on the
// host and on every device (unified addressing).
class PinnedMemory {
 public:
  // Zeroed, on huge pages where the system gives them. Throws SKV_OUT_OF_HOST_MEMORY.
  void* allocate(std::uint64_t bytes);
  void release(void* address);
  void pin(void* address, std::uint64_t bytes);
  void unpin(void* address);

 private:
  enum class Origin { kMapped, kDriver, kCaller };
  struct Block {
    void* base;
    std::uint64_t bytes;
    Origin origin;
  };

  Block forget(void* address, bool callers);

  std::unordered_map<void*, Block> blocks_;
};

}  // namespace skv::cuda
