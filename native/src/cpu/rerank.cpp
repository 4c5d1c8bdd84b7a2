#include <algorithm>
#include <cmath>
#include <new>

#include "cpu/attention.h"
#include "cpu/elements.h"
#include "cpu/rebuilt_keys.h"
#include "cpu/select_best.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kUnitTokens = 256;

}  // namespace

std::uint64_t rerank_workspace(const skv_rerank_params& p, const ExecutionTraits& traits) {
  const skv_geometry& g = p.geometry;
  const std::uint64_t threads = static_cast<std::uint64_t>(traits.threads);
  const std::int64_t stride = score_stride(p.shortlist_stride);
  return prepared_query_bytes(g, p.batch) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(head_pairs(g, p.batch) * group_size(g) * stride)) +
         Workspace::bytes_of<RebuiltKeys>(threads) + threads * RebuiltKeys::bytes(g, traits) +
         threads * Workspace::bytes_of<std::uint32_t>(static_cast<std::uint64_t>(stride));
}

// Exact attention mass of shortlisted chunks. Bound by the rebuilding of their keys, as sparse_attention is.
void rerank(const skv_rerank_params& p, Execution& execution) {
  const skv_geometry& g = p.geometry;
  check_shadow_geometry(g, p.query_type, "rerank");
  const ExecutionTraits traits = execution.traits();
  execution.workspace.require(rerank_workspace(p, traits), "rerank");
  Workspace& workspace = execution.workspace;
  const std::int32_t group = group_size(g), chunk = g.chunk;
  const std::int64_t heads = g.key_value_heads, pairs = head_pairs(g, p.batch), width = padded_dim(g.head_dim);
  const std::int64_t stride = score_stride(p.shortlist_stride), unit_chunks = kUnitTokens / chunk;
  const std::int64_t units = divide_up(p.shortlist_stride, unit_chunks);
  const float* const queries = prepare_queries(g, p.batch, p.query_type, p.queries, execution);
  // log of the summed exponentials of a chunk: [pairs][G][stride]
  float* const chunk_mass = workspace.take<float>(static_cast<std::uint64_t>(pairs * group * stride));
  const AttentionKernels& kernels = attention_kernels(execution.set);
  RebuiltKeys* const keys = workspace.take<RebuiltKeys>(static_cast<std::uint64_t>(traits.threads));
  for (int thread = 0; thread < traits.threads; ++thread) {
    new (keys + thread) RebuiltKeys(g, kernels, traits, workspace);
  }
  std::uint32_t* const order =
      workspace.take<std::uint32_t>(static_cast<std::uint64_t>(traits.threads) * static_cast<std::uint64_t>(stride));
  const auto listed = [&](std::int64_t pair) -> std::int64_t {
    return p.states[pair / heads].length == 0 ? 0 : p.shortlist_count[pair];
  };

  execution.pool.parallel_for(pairs * units, [&](std::int64_t unit, int thread) {
    const std::int64_t pair = unit / units, first = unit % units * unit_chunks;
    const std::int64_t end = std::min(first + unit_chunks, listed(pair)), block = RebuiltKeys::chunks_of_block(g);
    const skv_shadow_layer& layer = p.layers[pair / heads];
    const std::int32_t* const chunks = p.shortlist + pair * p.shortlist_stride;
    alignas(64) float scores[SKV_MAX_GROUP * RebuiltKeys::kTokens];
    for (std::int64_t at = first; at < end; at += block) {
      const std::int64_t count = std::min(block, end - at);
      for (std::int64_t i = at + count; i < std::min(at + count + block, end); ++i) {
        keys[thread].expect(layer, chunks[i]);
      }
      const float* const rebuilt = keys[thread].rebuild(layer, p.rope, pair, pair % heads, chunks + at, count);
      kernels.rows[SKV_F32].score(queries + pair * group * width, group, rebuilt, count * chunk,
                                  static_cast<std::int32_t>(width), scores, RebuiltKeys::kTokens);
      for (std::int64_t q = 0; q < group; ++q) {
        for (std::int64_t i = 0; i < count; ++i) {
          float largest, sum;
          kernels.log_sum(scores + q * RebuiltKeys::kTokens + i * chunk, chunk, &largest, &sum);
          chunk_mass[(pair * group + q) * stride + at + i] = largest + std::log(sum);
        }
      }
    }
  });

  execution.pool.parallel_for(pairs, [&](std::int64_t pair, int thread) {
    const std::int64_t count = listed(pair);
    const float* const rows = chunk_mass + pair * group * stride;
    const std::int32_t* const chunks = p.shortlist + pair * p.shortlist_stride;
    std::uint32_t* const best = order + thread * stride;
    float total[SKV_MAX_GROUP];
    for (std::int64_t q = 0; q < group; ++q) {
      float largest, sum;
      kernels.log_sum(rows + q * stride, count, &largest, &sum);
      total[q] = largest + std::log(sum);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      float mass = rows[i] - total[0];
      for (std::int64_t q = 1; q < group; ++q) {
        const float other = rows[q * stride + i] - total[q];
        mass = other > mass ? other : mass;
      }
      best[i] = order_key(mass);
    }
    std::int32_t* const selected = p.selected + pair * p.select;
    const std::int32_t taken = select_best(best, count, p.select, selected);
    for (std::int32_t i = 0; i < taken; ++i) {
      selected[i] = chunks[selected[i]];
    }
    p.selected_count[pair] = taken;
  });
}

}  // namespace skv::cpu
