// Contexts, memory, graphs and timing.
#include "abi/context.h"

#include <algorithm>

#include "abi/check.h"

namespace skv::abi {
namespace {

void check_backend(std::int32_t backend, const Check& check) {
  if (backend != SKV_BACKEND_CPU && backend != SKV_BACKEND_CUDA) {
    check.fail(SKV_INVALID_ARGUMENT, "backend is " + std::to_string(backend) + ", must be 0 (CPU) or 1 (CUDA)");
  }
}

constexpr std::int32_t kMostThreads = 1024;
constexpr std::int32_t kMarks = 16;

}  // namespace
}  // namespace skv::abi

using skv::abi::Check;
using skv::abi::guarded;

skv_status skv_device_count(int32_t backend, int32_t* count, char* message, uint64_t message_size) {
  return guarded(__func__, message, message_size, [&] {
    const Check check("skv_device_count");
    check.pointer("count", count);
    skv::abi::check_backend(backend, check);
    *count = 0;
    *count = backend == SKV_BACKEND_CPU ? 1 : skv::count_cuda_devices();
  });
}

skv_status skv_device_describe(int32_t backend, int32_t ordinal, skv_device_info* info, char* message,
                               uint64_t message_size) {
  return guarded(__func__, message, message_size, [&] {
    const Check check("skv_device_describe");
    check.pointer("info", info);
    check.struct_size(info->struct_size, sizeof(*info));
    skv::abi::check_backend(backend, check);
    if (backend == SKV_BACKEND_CPU) {
      check.range("ordinal", ordinal, 0, 0);
      skv::describe_cpu(*info);
    } else {
      check.range("ordinal", ordinal, 0, INT32_MAX);
      skv::describe_cuda(ordinal, *info);
    }
  });
}

skv_status skv_context_create(const skv_context_params* params, skv_context** context, char* message,
                              uint64_t message_size) {
  return guarded(__func__, message, message_size, [&] {
    const Check check("skv_context_create");
    check.pointer("context", context);
    *context = nullptr;
    check.pointer("params", params);
    check.struct_size(params->struct_size, sizeof(*params));
    skv::abi::check_backend(params->backend, check);
    auto created = std::make_unique<skv_context>();
    if (params->backend == SKV_BACKEND_CPU) {
      check.range("threads", params->threads, 0, skv::abi::kMostThreads);
      check.range("instruction_set", params->instruction_set, 0, 4);
      created->backend = skv::make_cpu_backend(*params);
    } else {
      check.range("ordinal", params->ordinal, 0, INT32_MAX);
      created->backend = skv::make_cuda_backend(*params);
    }
    *context = created.release();
  });
}

skv_status skv_context_destroy(skv_context* context) {
  return guarded(__func__, nullptr, 0, [&] { delete context; });
}

skv_status skv_context_message(skv_context* context, char* message, uint64_t message_size) {
  if (!context || !message || message_size == 0) {
    return SKV_INVALID_ARGUMENT;
  }
  skv::abi::write_message(context->message, message, message_size);
  return SKV_OK;
}

skv_status skv_blas_describe(skv_context* context, char* message, uint64_t message_size) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_blas_describe").pointer("message", message);
    skv::abi::write_message(backend.describe_blas().c_str(), message, message_size);
  });
}

skv_status skv_context_stream(skv_context* context, uint64_t* stream) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_context_stream").pointer("stream", stream);
    *stream = backend.stream();
  });
}

skv_status skv_synchronize(skv_context* context) {
  return guarded(__func__, context, [&](skv::Backend& backend) { backend.synchronize(); });
}

skv_status skv_workspace_bytes(skv_context* context, int32_t operation, const void* params, uint64_t* bytes) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_workspace_bytes");
    check.pointer("params", params);
    check.pointer("bytes", bytes);
    switch (operation) {
#define SKV_CHECK(method, type, function, number)                      \
  case number:                                                         \
    skv::abi::check_##method(static_cast<const type*>(params), false); \
    break;
      SKV_OPERATIONS(SKV_CHECK)
#undef SKV_CHECK
      default:
        check.fail(SKV_INVALID_ARGUMENT, "there is no operation number " + std::to_string(operation));
    }
    *bytes = backend.workspace_bytes(operation, params);
  });
}

skv_status skv_reserve_workspace(skv_context* context, uint64_t bytes) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_reserve_workspace").bytes(bytes);
    backend.reserve_workspace(bytes);
  });
}

skv_status skv_device_allocate(skv_context* context, uint64_t bytes, void** address) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_device_allocate");
    check.pointer("address", address);
    *address = nullptr;
    check.nonzero_bytes(bytes);
    *address = backend.allocate_device(bytes);
  });
}

skv_status skv_device_free(skv_context* context, void* address) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    if (address) {
      backend.free_device(address);
    }
  });
}

skv_status skv_host_allocate(skv_context* context, uint64_t bytes, void** address) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_host_allocate");
    check.pointer("address", address);
    *address = nullptr;
    check.nonzero_bytes(bytes);
    *address = backend.allocate_host(bytes);
  });
}

skv_status skv_host_free(skv_context* context, void* address) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    if (address) {
      backend.free_host(address);
    }
  });
}

skv_status skv_host_register(skv_context* context, void* address, uint64_t bytes) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_host_register");
    check.pointer("address", address);
    check.nonzero_bytes(bytes);
    backend.register_host(address, bytes);
  });
}

skv_status skv_host_unregister(skv_context* context, void* address) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_host_unregister").pointer("address", address);
    backend.unregister_host(address);
  });
}

skv_status skv_memory_info(skv_context* context, uint64_t* free_bytes, uint64_t* total_bytes) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_memory_info");
    check.pointer("free_bytes", free_bytes);
    check.pointer("total_bytes", total_bytes);
    std::uint64_t available = 0, total = 0;
    backend.memory_info(available, total);
    *free_bytes = available;
    *total_bytes = total;
  });
}

skv_status skv_copy(skv_context* context, void* target, const void* source, uint64_t bytes) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_copy");
    check.bytes(bytes);
    if (bytes > 0) {
      check.pointer("target", target);
      check.pointer("source", source);
      backend.copy(target, source, bytes);
    }
  });
}

skv_status skv_copy_2d(skv_context* context, void* target, uint64_t target_pitch, const void* source,
                       uint64_t source_pitch, uint64_t width, uint64_t rows) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_copy_2d");
    check.bytes(width);
    check.bytes(rows);
    if (width > 0 && rows > 0) {
      check.pointer("target", target);
      check.pointer("source", source);
      if (rows > 1 && (target_pitch < width || source_pitch < width)) {
        check.fail(SKV_INVALID_ARGUMENT, "a pitch is " + std::to_string(std::min(target_pitch, source_pitch)) +
                                             ", must be at least the width of " + std::to_string(width));
      }
      check.bytes_product("pitch * rows", std::max(target_pitch, source_pitch), rows);
      backend.copy_2d(target, target_pitch, source, source_pitch, width, rows);
    }
  });
}

skv_status skv_fill(skv_context* context, void* target, int32_t byte, uint64_t bytes) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_fill");
    check.bytes(bytes);
    check.range("byte", byte, -128, 255);
    if (bytes > 0) {
      check.pointer("target", target);
      backend.fill(target, byte, bytes);
    }
  });
}

skv_status skv_graph_begin(skv_context* context) {
  return guarded(__func__, context, [&](skv::Backend& backend) { backend.begin_graph(); });
}

skv_status skv_graph_end(skv_context* context, skv_graph** graph) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_graph_end").pointer("graph", graph);
    *graph = nullptr;
    auto created = std::make_unique<skv_graph>();
    created->graph = backend.end_graph();
    *graph = created.release();
  });
}

skv_status skv_graph_launch(skv_context* context, skv_graph* graph) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_graph_launch").pointer("graph", graph);
    backend.launch_graph(*graph->graph);
  });
}

skv_status skv_graph_destroy(skv_context* context, skv_graph* graph) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const std::unique_ptr<skv_graph> destroyed(graph);
    if (destroyed) {
      backend.synchronize();  // a graph under way still uses what it holds
    }
  });
}

skv_status skv_use_lane(skv_context* context, int32_t lane) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_use_lane").range("lane", lane, 0, SKV_LANES - 1);
    backend.use_lane(lane);
    context->lane = lane;
  });
}

skv_status skv_meet_lane(skv_context* context, int32_t lane) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_meet_lane").range("lane", lane, 1, SKV_LANES - 1);
    backend.meet_lane(lane);
  });
}

skv_status skv_mark(skv_context* context, int32_t mark) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    Check("skv_mark").range("mark", mark, 0, skv::abi::kMarks - 1);
    backend.mark(mark);
  });
}

skv_status skv_elapsed(skv_context* context, int32_t from, int32_t to, float* milliseconds) {
  return guarded(__func__, context, [&](skv::Backend& backend) {
    const Check check("skv_elapsed");
    check.pointer("milliseconds", milliseconds);
    check.range("from", from, 0, skv::abi::kMarks - 1);
    check.range("to", to, 0, skv::abi::kMarks - 1);
    *milliseconds = backend.elapsed(from, to);
  });
}
