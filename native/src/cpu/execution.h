// What an operation of the CPU backend gets besides its parameters.
//
// An operation is two functions, declared below for every entry of SKV_OPERATIONS:
//   void <operation>(const <params>&, Execution&);
//   std::uint64_t <operation>_workspace(const <params>&, const ExecutionTraits&);
// What it computes is done when it returns. On the decode path it allocates nothing but workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cpu/thread_pool.h"
#include "error.h"
#include "operations.h"
#include "shadowkv_types.h"

namespace skv::cpu {

// As skv_context_params counts them. A file compiled for a set is entered only on a processor that has it.
enum class InstructionSet : std::int32_t { kPortable = 1, kAvx2 = 2, kAvx512 = 3, kAvx512Bf16 = 4 };

// The best set that this processor and system have.
InstructionSet best_instruction_set();

struct ExecutionTraits {
  int threads = 1;
  InstructionSet set = InstructionSet::kPortable;
};

// Scratch memory of a context, handed out front to back, each part on a cache line of its own. A copy hands
// out the same bytes again, so work on a copy only when the two are never in use at once.
class Workspace {
 public:
  static constexpr std::uint64_t kAlignment = 64;

  Workspace() = default;
  Workspace(void* base, std::uint64_t bytes) : base_(static_cast<std::byte*>(base)), bytes_(bytes) {}

  static constexpr std::uint64_t align(std::uint64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  // What take<T>(count) uses up.
  template <class T>
  static constexpr std::uint64_t bytes_of(std::uint64_t count) {
    return align(count * sizeof(T));
  }

  std::uint64_t remaining() const { return bytes_; }

  // For the head of an operation: the message then names the whole need instead of one part's.
  void require(std::uint64_t needed, const char* operation) const {
    if (needed > bytes_) [[unlikely]] {
      throw Error(SKV_INVALID_ARGUMENT, std::string(operation) + " needs " + std::to_string(needed) +
                                            " bytes of workspace, " + std::to_string(bytes_) + " are reserved");
    }
  }

  template <class T>
  T* take(std::uint64_t count) {
    return reinterpret_cast<T*>(take_bytes(bytes_of<T>(count)));
  }

  Workspace slice(std::uint64_t bytes) {
    const std::uint64_t aligned = align(bytes);
    return Workspace(take_bytes(aligned), aligned);
  }

 private:
  std::byte* take_bytes(std::uint64_t aligned) {
    require(aligned, "an operation");
    std::byte* const taken = base_;
    base_ += aligned;
    bytes_ -= aligned;
    return taken;
  }

  std::byte* base_ = nullptr;
  std::uint64_t bytes_ = 0;
};

struct Execution {
  ThreadPool& pool;
  Workspace workspace;
  InstructionSet set;
  const std::string& blas_path;  // where blas::find_cpu looks first

  ExecutionTraits traits() const { return {pool.threads(), set}; }
};

#define SKV_DECLARE(method, params, function, number) \
  void method(const params& p, Execution& execution); \
  std::uint64_t method##_workspace(const params& p, const ExecutionTraits& traits);
SKV_OPERATIONS(SKV_DECLARE)
#undef SKV_DECLARE

}  // namespace skv::cpu
