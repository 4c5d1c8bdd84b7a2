// The CPU backend: a thread pool, a workspace and the free functions that are its operations.
#include "backend.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "blas/cpu_blas.h"
#include "cpu/execution.h"
#include "cpu/memory.h"

namespace skv::cpu {
namespace {

constexpr int kMarks = 16;

InstructionSet choose(std::int32_t asked) {
  const InstructionSet best = best_instruction_set();
  if (asked == 0) {
    return best;
  }
  if (asked > static_cast<std::int32_t>(best)) {
    throw Error(SKV_NOT_AVAILABLE, "this processor lacks instruction set " + std::to_string(asked) + "; its best is " +
                                       std::to_string(static_cast<std::int32_t>(best)) +
                                       " (1 portable, 2 AVX2, 3 AVX-512, 4 AVX-512 with bf16)");
  }
  return static_cast<InstructionSet>(asked);
}

std::string processor_name() {
  std::ifstream information("/proc/cpuinfo");
  for (std::string line; std::getline(information, line);) {
    if (line.starts_with("model name")) {
      const auto colon = line.find(": ");
      return colon == std::string::npos ? line : line.substr(colon + 2);
    }
  }
  return "CPU";
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const skv_context_params& params)
      : set_(choose(params.instruction_set)),
        blas_path_(params.blas_path ? params.blas_path : ""),
        pool_(params.threads > 0 ? params.threads : ThreadPool::processors()) {}

  void describe(skv_device_info& info) override {
    describe_cpu(info);
    info.instruction_set = static_cast<std::int32_t>(set_);
  }

  std::string describe_blas() override {
    try {
      return blas::load_cpu(blas_path_)->describe();
    } catch (const Error& error) {
      return error.what();
    }
  }

  std::uint64_t stream() const override { return 0; }
  void synchronize() override {}

  std::uint64_t workspace_bytes(std::int32_t operation, const void* params) override {
    const ExecutionTraits traits{pool_.threads(), set_};
    switch (operation) {
#define SKV_DISPATCH(method, type, function, number) \
  case number:                                       \
    return cpu::method##_workspace(*static_cast<const type*>(params), traits);
      SKV_OPERATIONS(SKV_DISPATCH)
#undef SKV_DISPATCH
      default:
        throw Error(SKV_INVALID_ARGUMENT, "there is no operation number " + std::to_string(operation));
    }
  }

  void reserve_workspace(std::uint64_t bytes) override {
    if (bytes <= workspace_bytes_) {
      return;
    }
    if (workspace_) {
      memory_.release(workspace_);
      workspace_ = nullptr;
      workspace_bytes_ = 0;
    }
    workspace_ = memory_.allocate(bytes);
    workspace_bytes_ = bytes;
  }

  void* allocate_device(std::uint64_t bytes) override {
    return memory_.allocate(bytes);
  }
  void free_device(void* address) override {
    if (address == workspace_) {
      throw Error(SKV_INVALID_ARGUMENT, "the address is not one of device memory of this context");
    }
    memory_.release(address);
  }
  void* allocate_host(std::uint64_t bytes) override {
    return memory_.allocate_touched(bytes, pool_);
  }
  void free_host(void* address) override {
    memory_.release_touched(address);
  }
  void register_host(void* address, std::uint64_t bytes) override {
    memory_.add_registration(address, bytes);
  }
  void unregister_host(void* address) override {
    memory_.remove_registration(address);
  }

  void memory_info(std::uint64_t& free_bytes, std::uint64_t& total_bytes) override {
    const MemoryBytes memory = memory_bytes();
    free_bytes = memory.available;
    total_bytes = memory.total;
  }

  void copy(void* target, const void* source, std::uint64_t bytes) override {
    pool_.parallel_ranges(static_cast<std::int64_t>(bytes), kPiece, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(static_cast<char*>(target) + begin, static_cast<const char*>(source) + begin,
                  static_cast<std::size_t>(end - begin));
    });
  }

  void copy_2d(void* target, std::uint64_t target_pitch, const void* source, std::uint64_t source_pitch,
               std::uint64_t width, std::uint64_t rows) override {
    if (width == 0) {
      return;
    }
    const std::int64_t rows_a_piece = std::max<std::int64_t>(1, kPiece / static_cast<std::int64_t>(width));
    pool_.parallel_ranges(static_cast<std::int64_t>(rows), rows_a_piece, [&](std::int64_t begin, std::int64_t end) {
      for (std::uint64_t row = static_cast<std::uint64_t>(begin); row < static_cast<std::uint64_t>(end); ++row) {
        std::memcpy(static_cast<char*>(target) + row * target_pitch,
                    static_cast<const char*>(source) + row * source_pitch, width);
      }
    });
  }

  void fill(void* target, std::int32_t byte, std::uint64_t bytes) override {
    pool_.parallel_ranges(static_cast<std::int64_t>(bytes), kPiece, [&](std::int64_t begin, std::int64_t end) {
      std::memset(static_cast<char*>(target) + begin, byte, static_cast<std::size_t>(end - begin));
    });
  }

  void begin_graph() override {
    refuse_graphs();
  }
  std::unique_ptr<Graph> end_graph() override {
    refuse_graphs();
  }
  void launch_graph(Graph&) override {
    refuse_graphs();
  }

  void use_lane(std::int32_t) override {}
  void meet_lane(std::int32_t) override {}

  void mark(std::int32_t mark) override {
    marks_.at(static_cast<std::size_t>(mark)) = Clock::now();
  }

  float elapsed(std::int32_t from, std::int32_t to) override {
    const auto& begin = marks_.at(static_cast<std::size_t>(from));
    const auto& end = marks_.at(static_cast<std::size_t>(to));
    if (!begin || !end) {
      throw Error(SKV_INVALID_ARGUMENT, "mark " + std::to_string(begin ? to : from) + " was never recorded");
    }
    return std::chrono::duration<float, std::milli>(*end - *begin).count();
  }

#define SKV_FORWARD(method, params, function, number) \
  void method(const params& p) override {             \
    Execution execution = prepare();                  \
    cpu::method(p, execution);                        \
  }
  SKV_OPERATIONS(SKV_FORWARD)
#undef SKV_FORWARD

 private:
  using Clock = std::chrono::steady_clock;

  // Bytes that one thread copies or sets at a time.
  static constexpr std::int64_t kPiece = 1 << 20;

  Execution prepare() {
    return {pool_, Workspace(workspace_, workspace_bytes_), set_, blas_path_};
  }

  [[noreturn]] static void refuse_graphs() {
    throw Error(SKV_NOT_AVAILABLE, "the CPU backend has no graphs: its work is done when a call returns");
  }

  InstructionSet set_;
  std::string blas_path_;
  ThreadPool pool_;
  Memory memory_;
  void* workspace_ = nullptr;
  std::uint64_t workspace_bytes_ = 0;
  std::array<std::optional<Clock::time_point>, kMarks> marks_;
};

}  // namespace
}  // namespace skv::cpu

namespace skv {

std::unique_ptr<Backend> make_cpu_backend(const skv_context_params& params) {
  return std::make_unique<cpu::CpuBackend>(params);
}

void describe_cpu(skv_device_info& info) {
  const cpu::MemoryBytes memory = cpu::memory_bytes();
  info.compute_major = 0;
  info.compute_minor = 0;
  info.multiprocessors = cpu::ThreadPool::processors();
  info.total_memory = static_cast<std::int64_t>(memory.total);
  info.free_memory = static_cast<std::int64_t>(memory.available);
  info.driver_version = 0;
  info.instruction_set = static_cast<std::int32_t>(cpu::best_instruction_set());
  const std::string name = cpu::processor_name();
  const std::size_t length = std::min(name.size(), sizeof(info.name) - 1);
  std::memcpy(info.name, name.data(), length);
  info.name[length] = '\0';
}

}  // namespace skv
