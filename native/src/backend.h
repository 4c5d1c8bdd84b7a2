// What a backend is to the ABI: memory, a stream, a workspace, and the operations. The ABI has checked
// the arguments that can be checked without touching the backend's memory; a backend refuses shapes that
// it has no kernel for with SKV_UNSUPPORTED before it launches anything. Failures are thrown as Error.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "error.h"
#include "operations.h"
#include "shadowkv_types.h"

namespace skv {

// A captured sequence of work; the CUDA backend derives from it.
class Graph {
 public:
  virtual ~Graph() = default;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual void describe(skv_device_info& info) = 0;
  virtual std::string describe_blas() = 0;
  virtual std::uint64_t stream() const = 0;
  virtual void synchronize() = 0;

  virtual std::uint64_t workspace_bytes(std::int32_t operation, const void* params) = 0;
  virtual void reserve_workspace(std::uint64_t bytes) = 0;

  virtual void* allocate_device(std::uint64_t bytes) = 0;
  virtual void free_device(void* address) = 0;
  virtual void* allocate_host(std::uint64_t bytes) = 0;
  virtual void free_host(void* address) = 0;
  virtual void register_host(void* address, std::uint64_t bytes) = 0;
  virtual void unregister_host(void* address) = 0;
  virtual void memory_info(std::uint64_t& free_bytes, std::uint64_t& total_bytes) = 0;
  virtual void copy(void* target, const void* source, std::uint64_t bytes) = 0;
  virtual void copy_2d(void* target, std::uint64_t target_pitch, const void* source,
                       std::uint64_t source_pitch, std::uint64_t width, std::uint64_t rows) = 0;
  virtual void fill(void* target, std::int32_t byte, std::uint64_t bytes) = 0;

  virtual void begin_graph() = 0;
  virtual std::unique_ptr<Graph> end_graph() = 0;
  virtual void launch_graph(Graph& graph) = 0;

  virtual void use_lane(std::int32_t lane) = 0;
  virtual void meet_lane(std::int32_t lane) = 0;

  virtual void mark(std::int32_t mark) = 0;
  virtual float elapsed(std::int32_t from, std::int32_t to) = 0;

#define SKV_DECLARE(method, params, function, number) virtual void method(const params& p) = 0;
  SKV_OPERATIONS(SKV_DECLARE)
#undef SKV_DECLARE

  // An operation with each of an array of its params, which do not touch what another of them writes.
  virtual void each(std::int32_t operation, const void* params, std::int32_t count) {
    switch (operation) {
#define SKV_EACH(method, type, function, number)          \
  case number:                                            \
    for (std::int32_t i = 0; i < count; ++i) {            \
      method(static_cast<const type*>(params)[i]);        \
    }                                                     \
    break;
      SKV_OPERATIONS(SKV_EACH)
#undef SKV_EACH
      default:
        throw Error(SKV_INVALID_ARGUMENT, "there is no operation number " + std::to_string(operation));
    }
  }
};

std::unique_ptr<Backend> make_cpu_backend(const skv_context_params& params);
void describe_cpu(skv_device_info& info);

// Defined by the CUDA sources, or, in a build without them, by a file that throws SKV_NOT_AVAILABLE.
std::unique_ptr<Backend> make_cuda_backend(const skv_context_params& params);
std::int32_t count_cuda_devices();
void describe_cuda(std::int32_t ordinal, skv_device_info& info);
// "CUDA 13.0 (sm_80, sm_90, PTX)", or "no CUDA".
const char* cuda_build_info();

}  // namespace skv
