// Kernels whose blocks wait for each other.
#pragma once

#include "cuda/launch.h"

namespace skv::cuda {

// Launches a kernel with every check, all of whose blocks run at the same time, or fails.
template <class... Parameters, class... Arguments>
void launch_together(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                     cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  // Arguments are converted to the kernel's own types first: the driver copies raw bytes of those.
  auto launch = [&](Parameters... converted) {
    void* pointers[] = {static_cast<void*>(&converted)..., nullptr};
    return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
  };
  check(launch(std::forward<Arguments>(arguments)...), name);
}

}  // namespace skv::cuda
