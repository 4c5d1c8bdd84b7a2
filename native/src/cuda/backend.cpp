// The CUDA backend: one device, one stream, one workspace; every call makes its device current first, so
// that contexts of several devices can be used from any thread.
#include "backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "cuda/cublas.h"
#include "cuda/decode.h"
#include "cuda/launch.h"
#include "cuda/memory.h"

namespace skv::cuda {
namespace {

constexpr int kMarks = 16;

// Makes a device current for a scope and puts back what the caller's thread had.
class CurrentDevice {
 public:
  explicit CurrentDevice(int ordinal) {
    check(cudaGetDevice(&previous_), "asking for the current device");
    if (previous_ != ordinal) {
      check(cudaSetDevice(ordinal), "selecting the device");
      changed_ = true;
    }
  }
  ~CurrentDevice() {
    if (changed_) {
      (void)cudaSetDevice(previous_);
    }
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, ordinal), "asking for a device attribute");
  return value;
}

DeviceTraits traits_of(int ordinal) {
  DeviceTraits traits;
  traits.ordinal = ordinal;
  traits.compute_major = attribute(cudaDevAttrComputeCapabilityMajor, ordinal);
  traits.compute_minor = attribute(cudaDevAttrComputeCapabilityMinor, ordinal);
  traits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, ordinal);
  traits.shared_memory_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  traits.shared_memory_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, ordinal);
  traits.l2_bytes = attribute(cudaDevAttrL2CacheSize, ordinal);
  return traits;
}

class CudaGraph final : public Graph {
 public:
  CudaGraph(cudaGraphExec_t executable, int ordinal) : executable_(executable), ordinal_(ordinal) {}
  ~CudaGraph() override {
    try {
      const CurrentDevice current(ordinal_);
      (void)cudaGraphExecDestroy(executable_);
    } catch (const Error&) {
      // After a fault there is nothing left to give back.
    }
  }
  cudaGraphExec_t executable() const { return executable_; }

 private:
  cudaGraphExec_t executable_;
  int ordinal_;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const skv_context_params& params) : ordinal_(params.ordinal), cublas_(params.blas_path) {
    const CurrentDevice current(ordinal_);
    try {
      // Loads the driver's context now, so that the first operation does not pay for it.
      check(cudaFree(nullptr), "opening the device");
      traits_ = traits_of(ordinal_);
      constexpr int kMinimumComputeMajor = 8;
      if (traits_.compute_major < kMinimumComputeMajor) {
        throw Error(SKV_UNSUPPORTED, "the CUDA backend needs compute capability 8.0, the device has " +
                                         std::to_string(traits_.compute_major) + "." +
                                         std::to_string(traits_.compute_minor));
      }
      count_clusters(traits_);
      find_warpgroups(traits_);
      int least = 0, greatest = 0;
      check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for stream priorities");
      if (params.own_stream) {
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
        owns_stream_ = true;
      } else {
        stream_ = reinterpret_cast<cudaStream_t>(params.stream);
      }
      for (int i = 0; i < Launch::kSideStreams; ++i) {
        check(cudaStreamCreateWithPriority(&side_[static_cast<std::size_t>(i)], cudaStreamNonBlocking,
                                           Launch::side_priority(i, least, greatest)),
              "creating a side stream");
      }
      for (cudaEvent_t& event : events_) {
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
      }
      for (cudaEvent_t& event : marks_) {
        check(cudaEventCreate(&event), "creating an event");
      }
    } catch (...) {
      release();
      throw;
    }
  }

  ~CudaBackend() override {
    try {
      const CurrentDevice current(ordinal_);
      (void)wait_for_lanes();
      release();
    } catch (const Error&) {
      // After a fault there is nothing left to give back.
    }
  }

  void describe(skv_device_info& info) override { describe_cuda(ordinal_, info); }

  std::string describe_blas() override {
    const CurrentDevice current(ordinal_);
    return cublas_.describe();
  }

  std::uint64_t stream() const override { return reinterpret_cast<std::uint64_t>(stream_); }

  void synchronize() override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("synchronize");
    check(wait_for_lanes(), "waiting for the stream");
  }

  std::uint64_t workspace_bytes(std::int32_t operation, const void* params) override {
    switch (operation) {
#define SKV_DISPATCH(method, type, function, number) \
  case number:                                       \
    return cuda::method##_workspace(*static_cast<const type*>(params), traits_);
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
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("reserve workspace");
    check(wait_for_lanes(), "waiting for the stream");
    // Freed first: the two need not fit at once.
    check(cudaFree(workspace_), "freeing the workspace");
    workspace_ = nullptr;
    workspace_bytes_ = 0;
    workspace_ = allocate(bytes);
    workspace_bytes_ = Workspace::align(bytes);
  }

  void* allocate_device(std::uint64_t bytes) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("allocate device memory");
    return allocate(bytes);
  }

  void free_device(void* address) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("free device memory");
    const cudaError_t code = cudaFree(address);
    if (code == cudaErrorInvalidValue) {
      (void)cudaGetLastError();
      throw Error(SKV_INVALID_ARGUMENT, "the address was not allocated as device memory");
    }
    check(code, "freeing device memory");
  }

  void* allocate_host(std::uint64_t bytes) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("allocate host memory");
    return pinned_.allocate(bytes);
  }

  void free_host(void* address) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("free host memory");
    // Work that is under way may still use the pages.
    const cudaError_t pending = wait_for_lanes();
    pinned_.release(address);
    check(pending, "waiting for the stream");
  }

  void register_host(void* address, std::uint64_t bytes) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("register host memory");
    pinned_.pin(address, bytes);
  }

  void unregister_host(void* address) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("unregister host memory");
    check(wait_for_lanes(), "waiting for the stream");
    pinned_.unpin(address);
  }

  void memory_info(std::uint64_t& free_bytes, std::uint64_t& total_bytes) override {
    const CurrentDevice current(ordinal_);
    std::size_t free_now = 0, total = 0;
    check(cudaMemGetInfo(&free_now, &total), "asking for the device's memory");
    free_bytes = free_now;
    total_bytes = total;
  }

  void copy(void* target, const void* source, std::uint64_t bytes) override {
    if (bytes == 0) {
      return;
    }
    const CurrentDevice current(ordinal_);
    const bool source_is_pageable = prepare_copy(target, source);
    check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, now()), "copying");
    if (source_is_pageable) {
      check(cudaStreamSynchronize(now()), "copying from pageable memory");
    }
  }

  void copy_2d(void* target, std::uint64_t target_pitch, const void* source, std::uint64_t source_pitch,
               std::uint64_t width, std::uint64_t rows) override {
    if (width == 0 || rows == 0) {
      return;
    }
    const CurrentDevice current(ordinal_);
    const bool source_is_pageable = prepare_copy(target, source);
    // The driver's own limit of a pitch.
    constexpr std::uint64_t kMaximumPitch = 0x7fffffff;
    if (target_pitch <= kMaximumPitch && source_pitch <= kMaximumPitch) {
      check(cudaMemcpy2DAsync(target, target_pitch, source, source_pitch, width, rows, cudaMemcpyDefault, now()),
            "copying rows");
    } else {
      for (std::uint64_t row = 0; row < rows; ++row) {
        check(cudaMemcpyAsync(static_cast<char*>(target) + row * target_pitch,
                              static_cast<const char*>(source) + row * source_pitch, width, cudaMemcpyDefault, now()),
              "copying a row");
      }
    }
    if (source_is_pageable) {
      check(cudaStreamSynchronize(now()), "copying from pageable memory");
    }
  }

  void fill(void* target, std::int32_t byte, std::uint64_t bytes) override {
    if (bytes == 0) {
      return;
    }
    const CurrentDevice current(ordinal_);
    if (is_pageable(target)) {
      refuse_while_capturing("fill pageable memory");
      check(cudaStreamSynchronize(now()), "waiting for the stream");
      std::memset(target, byte, bytes);
      return;
    }
    check(cudaMemsetAsync(target, byte, bytes, now()), "filling");
  }

  void begin_graph() override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("begin a second graph");
    if (!stream_ || stream_ == cudaStreamLegacy || stream_ == cudaStreamPerThread) {
      throw Error(SKV_INVALID_ARGUMENT, "work of a default stream cannot be captured; use a stream of your own");
    }
    // Relaxed: a context may be used by any thread, so the graph may be ended by another thread than the
    // one that began it. What must not happen in between is refused above, call by call.
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "beginning a graph");
    capturing_ = true;
  }

  std::unique_ptr<Graph> end_graph() override {
    const CurrentDevice current(ordinal_);
    if (!capturing_) {
      throw Error(SKV_INVALID_ARGUMENT, "no graph was begun");
    }
    capturing_ = false;
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream_, &graph), "ending a graph");
    cudaGraphExec_t executable = nullptr;
    // Kernels keep the priorities of the streams that they were captured from.
    const cudaError_t code = cudaGraphInstantiate(&executable, graph, cudaGraphInstantiateFlagUseNodePriority);
    (void)cudaGraphDestroy(graph);
    check(code, "instantiating a graph");
    auto result = std::make_unique<CudaGraph>(executable, ordinal_);
    check(cudaGraphUpload(executable, stream_), "uploading a graph");
    return result;
  }

  void launch_graph(Graph& graph) override {
    auto* const captured = dynamic_cast<CudaGraph*>(&graph);
    if (!captured) {
      throw Error(SKV_INVALID_ARGUMENT, "the graph is not one of a CUDA context");
    }
    const CurrentDevice current(ordinal_);
    check(cudaGraphLaunch(captured->executable(), stream_), "launching a graph");
  }

  void use_lane(std::int32_t lane) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("choose a lane");
    if (lane != 0 && !lanes_[lane - 1]) {
      check(cudaStreamCreateWithFlags(&lanes_[lane - 1], cudaStreamNonBlocking), "creating a lane");
    }
    lane_ = lane;
  }

  void meet_lane(std::int32_t lane) override {
    const CurrentDevice current(ordinal_);
    refuse_while_capturing("meet a lane");
    const cudaStream_t other = lanes_[lane - 1];
    if (!other) {
      // It has been given nothing, but what it is given next may need what this stream was given.
      use_lane(lane);
      lane_ = 0;
      return meet_lane(lane);
    }
    check(cudaEventRecord(events_[0], stream_), "recording an event");
    check(cudaEventRecord(events_[1], other), "recording an event");
    check(cudaStreamWaitEvent(other, events_[0], 0), "waiting for an event");
    check(cudaStreamWaitEvent(stream_, events_[1], 0), "waiting for an event");
  }

  void mark(std::int32_t mark) override {
    check_mark(mark);
    const CurrentDevice current(ordinal_);
    check(cudaEventRecordWithFlags(marks_[mark], stream_, capturing_ ? cudaEventRecordExternal : cudaEventRecordDefault),
          "recording a mark");
    marked_[mark] = true;
  }

  float elapsed(std::int32_t from, std::int32_t to) override {
    check_mark(from);
    check_mark(to);
    if (!marked_[from] || !marked_[to]) {
      throw Error(SKV_INVALID_ARGUMENT, "mark " + std::to_string(marked_[from] ? to : from) + " was never recorded");
    }
    const CurrentDevice current(ordinal_);
    check(cudaEventSynchronize(marks_[from]), "waiting for a mark");
    check(cudaEventSynchronize(marks_[to]), "waiting for a mark");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, marks_[from], marks_[to]), "taking the time between marks");
    return milliseconds;
  }

#define SKV_FORWARD(method, type, function, number)                                                          \
  void method(const type& p) override {                                                                      \
    const CurrentDevice current(ordinal_);                                                                   \
    Launch launch{now(), side_.data(), events_.data(), Workspace(workspace_, workspace_bytes_), traits_, cublas_}; \
    cuda::method(p, launch);                                                                                 \
  }
  SKV_OPERATIONS(SKV_FORWARD)
#undef SKV_FORWARD

  void each(std::int32_t operation, const void* params, std::int32_t count) override {
    const CurrentDevice current(ordinal_);
    Launch launch{now(), side_.data(), events_.data(), Workspace(workspace_, workspace_bytes_), traits_, cublas_};
    switch (operation) {
      case SKV_OP_ROPE:
        return rope_each(static_cast<const skv_rope_params*>(params), count, launch);
      case SKV_OP_LOW_RANK_PROJECT:
        return low_rank_project_each(static_cast<const skv_low_rank_project_params*>(params), count, launch);
      case SKV_OP_LANDMARK_BUILD:
        return landmark_build_each(static_cast<const skv_landmark_build_params*>(params), count, launch);
      case SKV_OP_VALUE_STORE:
        return value_store_each(static_cast<const skv_value_store_params*>(params), count, launch);
      default:
        return Backend::each(operation, params, count);
    }
  }

 private:
  // Where work goes.
  cudaStream_t now() const { return lane_ == 0 ? stream_ : lanes_[lane_ - 1]; }

  // Waits for all lanes; the first failure.
  cudaError_t wait_for_lanes() const {
    cudaError_t code = cudaStreamSynchronize(stream_);
    for (cudaStream_t lane : lanes_) {
      const cudaError_t one = lane ? cudaStreamSynchronize(lane) : cudaSuccess;
      code = code == cudaSuccess ? one : code;
    }
    return code;
  }

  static void check_mark(std::int32_t mark) {
    if (mark < 0 || mark >= kMarks) {
      throw Error(SKV_INVALID_ARGUMENT,
                  "mark " + std::to_string(mark) + " is not within 0 and " + std::to_string(kMarks - 1));
    }
  }

  static void* allocate(std::uint64_t bytes) {
    void* address = nullptr;
    const cudaError_t code = cudaMalloc(&address, Workspace::align(std::max<std::uint64_t>(bytes, 1)));
    if (code == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      std::size_t free_now = 0, total = 0;
      (void)cudaMemGetInfo(&free_now, &total);
      throw Error(SKV_OUT_OF_DEVICE_MEMORY, "allocating " + std::to_string(bytes) + " bytes of device memory; " +
                                                std::to_string(free_now) + " of " + std::to_string(total) +
                                                " are free");
    }
    check(code, "allocating device memory");
    return address;
  }

  void refuse_while_capturing(const char* what) const {
    if (capturing_) {
      throw Error(SKV_INVALID_ARGUMENT, std::string("cannot ") + what + " while a graph is captured");
    }
  }

  static bool is_pageable(const void* address) {
    cudaPointerAttributes attributes = {};
    check(cudaPointerGetAttributes(&attributes, address), "asking what an address is");
    return attributes.type == cudaMemoryTypeUnregistered;
  }

  // Whether the source is pageable: its copy is then waited for, since the driver may read it after the
  // call returns where the device can access pageable memory by itself.
  bool prepare_copy(const void* target, const void* source) const {
    const bool source_is_pageable = is_pageable(source);
    if (capturing_ && (source_is_pageable || is_pageable(target))) {
      throw Error(SKV_INVALID_ARGUMENT, "cannot copy pageable memory while a graph is captured");
    }
    return source_is_pageable;
  }

  void release() noexcept {
    cublas_.close();
    if (capturing_) {
      cudaGraph_t graph = nullptr;
      (void)cudaStreamEndCapture(stream_, &graph);
      if (graph) {
        (void)cudaGraphDestroy(graph);
      }
    }
    for (cudaEvent_t event : marks_) {
      if (event) {
        (void)cudaEventDestroy(event);
      }
    }
    for (cudaEvent_t event : events_) {
      if (event) {
        (void)cudaEventDestroy(event);
      }
    }
    for (cudaStream_t side : side_) {
      if (side) {
        (void)cudaStreamDestroy(side);
      }
    }
    for (cudaStream_t lane : lanes_) {
      if (lane) {
        (void)cudaStreamDestroy(lane);
      }
    }
    if (owns_stream_) {
      (void)cudaStreamDestroy(stream_);
    }
    (void)cudaFree(workspace_);
    (void)cudaGetLastError();
  }

  int ordinal_;
  DeviceTraits traits_;
  Cublas cublas_;
  PinnedMemory pinned_;
  cudaStream_t stream_ = nullptr;
  bool owns_stream_ = false;
  bool capturing_ = false;
  std::array<cudaStream_t, SKV_LANES - 1> lanes_ = {};  // made when they are first used
  std::int32_t lane_ = 0;
  std::array<cudaStream_t, Launch::kSideStreams> side_ = {};
  std::array<cudaEvent_t, Launch::kEvents> events_ = {};
  std::array<cudaEvent_t, kMarks> marks_ = {};
  std::array<bool, kMarks> marked_ = {};
  void* workspace_ = nullptr;
  std::uint64_t workspace_bytes_ = 0;
};

}  // namespace
}  // namespace skv::cuda

namespace skv {

std::int32_t count_cuda_devices() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    (void)cudaGetLastError();
    if (cuda::is_fault(code)) {
      // There is a device, and this process has broken it.
      cuda::raise(code, "counting the devices");
    }
    throw Error(SKV_NOT_AVAILABLE, cuda::unavailable_reason(code));
  }
  return count;
}

void describe_cuda(std::int32_t ordinal, skv_device_info& info) {
  const std::int32_t count = count_cuda_devices();
  if (ordinal < 0 || ordinal >= count) {
    throw Error(SKV_INVALID_ARGUMENT, "there is no CUDA device " + std::to_string(ordinal) + "; there are " +
                                          std::to_string(count));
  }
  const cuda::CurrentDevice current(ordinal);
  cudaDeviceProp properties = {};
  cuda::check(cudaGetDeviceProperties(&properties, ordinal), "describing the device");
  std::size_t free_now = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free_now, &total), "asking for the device's memory");
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.total_memory = static_cast<std::int64_t>(total);
  info.free_memory = static_cast<std::int64_t>(free_now);
  cuda::check(cudaDriverGetVersion(&info.driver_version), "asking for the driver's version");
  info.instruction_set = 0;
  std::strncpy(info.name, properties.name, sizeof info.name - 1);
  info.name[sizeof info.name - 1] = '\0';
}

std::unique_ptr<Backend> make_cuda_backend(const skv_context_params& params) {
  const std::int32_t count = count_cuda_devices();
  if (params.ordinal < 0 || params.ordinal >= count) {
    throw Error(SKV_INVALID_ARGUMENT, "there is no CUDA device " + std::to_string(params.ordinal) + "; there are " +
                                          std::to_string(count));
  }
  return std::make_unique<cuda::CudaBackend>(params);
}

const char* cuda_build_info() { return "CUDA " SHADOWKV_CUDA_TARGETS; }

}  // namespace skv
