// What an operation of the CUDA backend gets besides its parameters: where to launch, what the device is,
// scratch memory, side streams for work that overlaps, and cuBLAS.
//
// An operation is two functions, declared below for every entry of SKV_OPERATIONS:
//   void <operation>(const <params>&, Launch&);
//   std::uint64_t <operation>_workspace(const <params>&, const DeviceTraits&);
// It launches on launch.stream and returns. It never allocates and never waits for the device, so that it
// can be captured. The calling thread's device is already the context's.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda/status.h"
#include "operations.h"
#include "shadowkv_types.h"

namespace skv::cuda {

class Cublas;

struct DeviceTraits {
  int ordinal = 0;
  int compute_major = 0, compute_minor = 0;
  int multiprocessors = 0;
  int shared_memory_per_block = 0;           // bytes, opted in
  int shared_memory_per_multiprocessor = 0;  // bytes
  std::int64_t l2_bytes = 0;
  // Clusters of so many blocks, one block an SM, that run at the same time; all zero where there are none (sm_80).
  static constexpr int kMostClusterBlocks = 8;  // 16 fill a GPC: others wait, and one session gains nothing
  int clusters[kMostClusterBlocks + 1] = {};
  bool warpgroups = false;  // its code has products by warpgroups (sm_90a)
};

// Scratch memory of a context, handed out front to back. A copy hands out the same bytes again, so work on
// a copy only when the two are never in use at once. Work on side streams needs parts of its own: slice().
class Workspace {
 public:
  static constexpr std::uint64_t kAlignment = 256;

  Workspace() = default;
  Workspace(void* base, std::uint64_t bytes) : base_(static_cast<std::byte*>(base)), bytes_(bytes) {}

  static constexpr std::uint64_t align(std::uint64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  std::uint64_t bytes() const { return bytes_; }

  // Throws unless that much is left. An operation calls it first, with its <operation>_workspace().
  void require(std::uint64_t needed, const char* operation) const {
    if (needed > bytes_) [[unlikely]] {
      throw Error(SKV_INVALID_ARGUMENT, std::string(operation) + " needs " + std::to_string(needed) +
                                            " bytes of workspace, " + std::to_string(bytes_) + " are reserved");
    }
  }

  template <class T>
  T* take(std::uint64_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

  Workspace slice(std::uint64_t bytes) {
    const std::uint64_t aligned = align(bytes);
    return Workspace(take_bytes(aligned), aligned);
  }

 private:
  void* take_bytes(std::uint64_t bytes) {
    const std::uint64_t aligned = align(bytes);
    require(aligned, "an operation");
    std::byte* const taken = base_;
    base_ += aligned;
    bytes_ -= aligned;
    return taken;
  }

  std::byte* base_ = nullptr;
  std::uint64_t bytes_ = 0;
};

struct Launch {
  static constexpr int kSideStreams = 7;
  static constexpr int kEvents = 128;

  // Side streams are less urgent from one to the next, the first two alike, and the last two no more than `least`.
  static int side_priority(int index, int least, int greatest) {
    return index >= kSideStreams - 2 ? least : std::min(least, greatest + std::max(0, index - 1));
  }

  cudaStream_t stream = nullptr;
  cudaStream_t* side = nullptr;   // [kSideStreams], non-blocking, with side_priority
  cudaEvent_t* events = nullptr;  // [kEvents], without timing; free for any use within one operation
  Workspace workspace;
  const DeviceTraits& traits;
  Cublas& cublas;

  // `later` goes on only after what `earlier` has been given so far. Works inside a capture, where it also
  // brings a side stream into the graph; every side stream must be joined again before the operation returns.
  void order(cudaStream_t earlier, cudaStream_t later, int event) const {
    check(cudaEventRecord(events[event], earlier), "recording an event");
    check(cudaStreamWaitEvent(later, events[event], 0), "waiting for an event");
  }

  // The same place of work, on another stream and another part of the workspace.
  Launch on(cudaStream_t other, Workspace part) const { return Launch{other, side, events, part, traits, cublas}; }
};

// Launches a kernel with every check. `name` is what a failure is called.
template <class... Parameters, class... Arguments>
void launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  if (shared_bytes > kSharedWithoutAsking) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  // Arguments are converted to the kernel's own types first: the driver copies raw bytes of those.
  auto launch = [&](Parameters... converted) {
    void* pointers[] = {static_cast<void*>(&converted)..., nullptr};
    return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
  };
  check(launch(std::forward<Arguments>(arguments)...), name);
}

// Params of several calls of an operation that are one launch: the last dimension of the grid says whose.
template <class P>
struct Several {
  static constexpr int kMost = 16;
  P of[kMost];
  static_assert(sizeof(P) * kMost <= 4096, "what a kernel takes as parameters");
};

// Whether two calls differ in nothing but these addresses.
template <class P, class... Addresses>
bool alike_but_for(P a, P b, Addresses... addresses) {
  ((a.*addresses = nullptr, b.*addresses = nullptr), ...);
  return std::memcmp(&a, &b, sizeof(P)) == 0;
}

template <class P>
Several<P> only(const P& p) {
  return {{p}};
}

// Hands over calls in groups that are alike: run(group, how many).
template <class P, class Alike, class Run>
void in_groups(const P* all, int count, const Alike& alike, const Run& run) {
  std::vector<bool> done(static_cast<std::size_t>(count));
  for (int first = 0; first < count; ++first) {
    if (done[static_cast<std::size_t>(first)]) {
      continue;
    }
    Several<P> group = {};
    int members = 0;
    for (int i = first; i < count && members < Several<P>::kMost; ++i) {
      if (!done[static_cast<std::size_t>(i)] && (i == first || alike(all[first], all[i]))) {
        done[static_cast<std::size_t>(i)] = true;
        group.of[members++] = all[i];
      }
    }
    run(group, members);
  }
}

// What skv_each makes fewer launches of.
void rope_each(const skv_rope_params* all, int count, Launch& launch);
void low_rank_project_each(const skv_low_rank_project_params* all, int count, Launch& launch);
void landmark_build_each(const skv_landmark_build_params* all, int count, Launch& launch);
void value_store_each(const skv_value_store_params* all, int count, Launch& launch);

#define SKV_DECLARE(method, params, function, number) \
  void method(const params& p, Launch& launch);       \
  std::uint64_t method##_workspace(const params& p, const DeviceTraits& traits);
SKV_OPERATIONS(SKV_DECLARE)
#undef SKV_DECLARE

}  // namespace skv::cuda
