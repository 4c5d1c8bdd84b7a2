// Keys of chunks, rebuilt from coefficients and basis and rotated, a block at a time.
#pragma once

#include <cstdint>

#include "cpu/attention_kernels.h"
#include "cpu/elements.h"
#include "cpu/execution.h"
#include "shadowkv_types.h"

namespace skv::cpu {

// Scratch memory of one thread. The basis of a head is packed when the thread first meets the head.
class RebuiltKeys {
 public:
  // What is rebuilt at once: enough tokens that a tile of the basis is used often, few enough that their
  // coefficients and keys stay near.
  static constexpr std::int64_t kTokens = 32;

  static std::uint64_t bytes(const skv_geometry& geometry, const ExecutionTraits& traits);
  RebuiltKeys(const skv_geometry& geometry, const AttentionKernels& kernels, const ExecutionTraits& traits,
              Workspace& workspace);

  static std::int64_t chunks_of_block(const skv_geometry& geometry) { return kTokens / geometry.chunk; }

  // What the caller or the next rebuild() will read: the next rebuild() asks for it as it goes. Beyond some number of
  // lines it is not asked for.
  void expect(const void* address, std::int64_t bytes);
  void expect(const skv_shadow_layer& layer, std::int32_t chunk);

  // Keys [count*C][padded_dim(D)], count <= chunks_of_block; `pair` tells heads of sessions apart.
  const float* rebuild(const skv_shadow_layer& layer, const skv_rope& rope, std::int64_t pair, std::int64_t head,
                       const std::int32_t* chunks, std::int64_t count);

  // The same keys rounded to the storage type, chunk i to targets[i] [C][D].
  void rebuild_to(const skv_shadow_layer& layer, const skv_rope& rope, std::int64_t pair, std::int64_t head,
                  const std::int32_t* chunks, std::int64_t count, void* const* targets);

 private:
  static constexpr std::int64_t kMostLines = 1024;

  skv_geometry geometry_;
  const AttentionKernels* kernels_;
  Narrow narrow_;
  std::byte* basis_;
  std::byte* coefficients_;
  float* keys_;
  const void** lines_;  // [kMostLines]
  std::int64_t line_count_ = 0;
  std::int64_t packed_pair_ = -1;
};

}  // namespace skv::cpu
