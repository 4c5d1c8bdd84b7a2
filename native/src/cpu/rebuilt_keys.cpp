#include "cpu/rebuilt_keys.h"

#include <algorithm>

#include "cpu/attention.h"
#include "cpu/elements.h"

namespace skv::cpu {

std::uint64_t RebuiltKeys::bytes(const skv_geometry& g, const ExecutionTraits& traits) {
  const AttentionKernels& kernels = attention_kernels(traits.set);
  return Workspace::align(kernels.packed_basis_bytes(g.storage_type, g.rank, g.head_dim)) +
         Workspace::align(kernels.packed_coefficients_bytes(g.storage_type, g.rank, kTokens)) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(kTokens * padded_dim(g.head_dim))) +
         Workspace::bytes_of<const void*>(kMostLines);
}

RebuiltKeys::RebuiltKeys(const skv_geometry& g, const AttentionKernels& kernels, const ExecutionTraits& traits,
                         Workspace& workspace)
    : geometry_(g),
      kernels_(&kernels),
      narrow_(g.storage_type == SKV_BF16 && kernels.round_bf16 != nullptr
                  ? kernels.round_bf16
                  : narrow_function(g.storage_type, traits.set)) {
  basis_ = workspace.take<std::byte>(kernels.packed_basis_bytes(g.storage_type, g.rank, g.head_dim));
  coefficients_ = workspace.take<std::byte>(kernels.packed_coefficients_bytes(g.storage_type, g.rank, kTokens));
  keys_ = workspace.take<float>(static_cast<std::uint64_t>(kTokens * padded_dim(g.head_dim)));
  lines_ = workspace.take<const void*>(kMostLines);
}

const float* RebuiltKeys::rebuild(const skv_shadow_layer& layer, const skv_rope& rope, std::int64_t pair,
                                  std::int64_t head, const std::int32_t* chunks, std::int64_t count) {
  const skv_geometry& g = geometry_;
  const std::int64_t chunk = g.chunk, width = padded_dim(g.head_dim);
  if (packed_pair_ != pair) {
    kernels_->pack_basis(g.storage_type,
                         element_at(static_cast<const void*>(layer.basis), g.storage_type, head * g.rank * g.head_dim),
                         g.rank, g.head_dim, basis_);
    packed_pair_ = pair;
  }
  const bool plain = kernels_->plain_coefficients(g.storage_type, g.coefficient_type, g.rank);
  const std::uint64_t packed = kernels_->packed_coefficients_bytes(g.storage_type, g.rank, kRebuiltGroup);
  const void* groups[kTokens / kRebuiltGroup];
  std::int64_t group = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t t = 0; t < chunk; t += kRebuiltGroup) {
      const void* const rows = element_at(static_cast<const void*>(layer.coefficients), g.coefficient_type,
                                          (chunks[i] * chunk + t) * g.rank);
      std::byte* const here = coefficients_ + static_cast<std::uint64_t>(group) * packed;
      if (!plain) {
        kernels_->pack_coefficients(g.storage_type, g.coefficient_type, rows, g.rank, kRebuiltGroup, here);
      }
      groups[group++] = plain ? rows : here;
    }
  }
  kernels_->rebuild(g.storage_type, groups, basis_, g.rank, g.head_dim, group, keys_, {lines_, line_count_});
  line_count_ = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    kernels_->rotate(rope, chunks[i] * chunk, chunk, g.head_dim, keys_ + i * chunk * width);
  }
  return keys_;
}

void RebuiltKeys::rebuild_to(const skv_shadow_layer& layer, const skv_rope& rope, std::int64_t pair, std::int64_t head,
                             const std::int32_t* chunks, std::int64_t count, void* const* targets) {
  const std::int64_t chunk = geometry_.chunk, dim = geometry_.head_dim, width = padded_dim(dim);
  const float* const keys = rebuild(layer, rope, pair, head, chunks, count);
  for (std::int64_t i = 0; i < count; ++i) {
    const float* const from = keys + i * chunk * width;
    if (width == dim) {
      narrow_(from, targets[i], chunk * dim);
      continue;
    }
    for (std::int64_t t = 0; t < chunk; ++t) {
      narrow_(from + t * width, element_at(targets[i], geometry_.storage_type, t * dim), dim);
    }
  }
}

void RebuiltKeys::expect(const void* address, std::int64_t bytes) {
  constexpr std::int64_t kCacheLine = 64;
  for (std::int64_t at = 0; at < bytes && line_count_ < kMostLines; at += kCacheLine) {
    lines_[line_count_++] = static_cast<const char*>(address) + at;
  }
}

void RebuiltKeys::expect(const skv_shadow_layer& layer, std::int32_t chunk) {
  const std::int64_t elements = static_cast<std::int64_t>(geometry_.chunk) * geometry_.rank;
  expect(element_at(static_cast<const void*>(layer.coefficients), geometry_.coefficient_type, chunk * elements),
         elements * element_bytes(geometry_.coefficient_type));
}

}  // namespace skv::cpu
