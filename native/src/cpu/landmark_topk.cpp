#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/attention.h"
#include "cpu/elements.h"
#include "cpu/select_best.h"

namespace skv::cpu {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// Chunks that one thread scores at a time: a quarter of a megabyte of landmarks at 128 bf16 dimensions.
constexpr std::int64_t kUnitChunks = 1024;

struct Shape {
  std::int64_t pairs, units, stride;
  std::int32_t group;
};

Shape shape_of(const skv_landmark_topk_params& p) {
  return {head_pairs(p.geometry, p.batch), divide_up(p.max_chunks, kUnitChunks), score_stride(p.max_chunks),
          group_size(p.geometry)};
}

}  // namespace

std::uint64_t landmark_topk_workspace(const skv_landmark_topk_params& p, const ExecutionTraits& traits) {
  const Shape s = shape_of(p);
  const std::uint64_t threads = static_cast<std::uint64_t>(traits.threads);
  return prepared_query_bytes(p.geometry, p.batch) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(s.pairs * s.group * s.stride)) +
         2 * Workspace::bytes_of<float>(static_cast<std::uint64_t>(s.pairs * s.units * s.group)) +
         threads * (Workspace::bytes_of<std::uint32_t>(static_cast<std::uint64_t>(s.stride)) +
                    Workspace::bytes_of<float>(static_cast<std::uint64_t>(p.select)));
}

// Landmarks [K][chunk_capacity][D], of which the indexed are read once: that bounds it. Then a radix selection over one
// score a chunk, head by head.
void landmark_topk(const skv_landmark_topk_params& p, Execution& execution) {
  const skv_geometry& g = p.geometry;
  check_shadow_geometry(g, p.query_type, "landmark_topk");
  const ExecutionTraits traits = execution.traits();
  execution.workspace.require(landmark_topk_workspace(p, traits), "landmark_topk");
  for (std::int32_t b = 0; b < p.batch; ++b) {
    const std::int64_t chunks = p.states[b].indexed_chunks;
    if (p.states[b].length > 0 && (chunks > p.max_chunks || chunks > p.layers[b].chunk_capacity)) {
      throw Error(SKV_INVALID_ARGUMENT, "landmark_topk: session " + std::to_string(b) + " has " +
                                            std::to_string(chunks) + " indexed chunks, max_chunks is " +
                                            std::to_string(p.max_chunks) + " and its capacity " +
                                            std::to_string(p.layers[b].chunk_capacity));
    }
  }
  Workspace& workspace = execution.workspace;
  const Shape s = shape_of(p);
  const std::int32_t group = s.group, dim = g.head_dim;
  const std::int64_t heads = g.key_value_heads, width = padded_dim(dim);
  const float* const queries = prepare_queries(g, p.batch, p.query_type, p.queries, execution);
  float* const logits = workspace.take<float>(static_cast<std::uint64_t>(s.pairs * group * s.stride));
  float* const largest = workspace.take<float>(static_cast<std::uint64_t>(s.pairs * s.units * group));
  float* const sum = workspace.take<float>(static_cast<std::uint64_t>(s.pairs * s.units * group));
  Workspace per_thread = workspace;
  const std::uint64_t thread_bytes = Workspace::bytes_of<std::uint32_t>(static_cast<std::uint64_t>(s.stride)) +
                                     Workspace::bytes_of<float>(static_cast<std::uint64_t>(p.select));
  std::byte* const thread_memory =
      per_thread.take<std::byte>(thread_bytes * static_cast<std::uint64_t>(traits.threads));
  const AttentionKernels& kernels = attention_kernels(execution.set);
  const auto indexed = [&](std::int64_t pair) -> std::int64_t {
    const skv_session_state& state = p.states[pair / heads];
    return state.length == 0 ? 0 : state.indexed_chunks;
  };

  execution.pool.parallel_for(s.pairs * s.units, [&](std::int64_t unit) {
    const std::int64_t pair = unit / s.units, first = unit % s.units * kUnitChunks, head = pair % heads;
    const std::int64_t count = std::min(kUnitChunks, indexed(pair) - first);
    if (count <= 0) {
      return;
    }
    const skv_shadow_layer& layer = p.layers[pair / heads];
    const std::int64_t at = head * layer.chunk_capacity + first;
    const float* const query = queries + pair * group * width;
    float* const rows = logits + pair * group * s.stride + first;
    kernels.rows[g.landmark_type].score(
        query, group, element_at(static_cast<const void*>(layer.landmarks), g.landmark_type, at * dim), count, dim,
        rows, s.stride);
    const float* __restrict__ const radius = layer.radius + at;
    for (std::int64_t q = 0; q < group; ++q) {
      float* __restrict__ const row = rows + q * s.stride;
      double squares = 0;
      for (std::int64_t d = 0; d < dim; ++d) {
        squares += static_cast<double>(query[q * width + d]) * static_cast<double>(query[q * width + d]);
      }
      const float weight = static_cast<float>(static_cast<double>(p.radius_weight) * std::sqrt(squares));
      if (g.landmark_type == SKV_I8) {
        const float* __restrict__ const scales = layer.landmark_scales + at;
        for (std::int64_t c = 0; c < count; ++c) {
          row[c] *= scales[c];
        }
      }
      for (std::int64_t c = 0; c < count; ++c) {
        const float logit = row[c] + weight * radius[c];
        row[c] = radius[c] < 0 ? kNothing : logit;
      }
      kernels.log_sum(row, count, largest + unit * group + q, sum + unit * group + q);
    }
  });

  execution.pool.parallel_for(s.pairs, [&](std::int64_t pair, int thread) {
    const std::int64_t count = indexed(pair), units = divide_up(count, kUnitChunks);
    Workspace scratch(thread_memory + static_cast<std::uint64_t>(thread) * thread_bytes, thread_bytes);
    std::uint32_t* __restrict__ const keys = scratch.take<std::uint32_t>(static_cast<std::uint64_t>(s.stride));
    float* const gathered = scratch.take<float>(static_cast<std::uint64_t>(p.select));
    const float* const rows = logits + pair * group * s.stride;
    float log_sum_exp[SKV_MAX_GROUP];
    for (std::int64_t q = 0; q < group; ++q) {
      float most = kNothing, total = 0;
      for (std::int64_t unit = 0; unit < units; ++unit) {
        most = std::max(most, largest[(pair * s.units + unit) * group + q]);
      }
      for (std::int64_t unit = 0; unit < units; ++unit) {
        const std::int64_t at = (pair * s.units + unit) * group + q;
        total += largest[at] == kNothing ? sum[at] : sum[at] * std::exp(largest[at] - most);
      }
      log_sum_exp[q] = most + std::log(total);
    }
    const skv_shadow_layer& layer = p.layers[pair / heads];
    const float* const radius = layer.radius + pair % heads * layer.chunk_capacity;
    constexpr std::int64_t kStrip = 256;
    for (std::int64_t first = 0; first < count; first += kStrip) {
      const std::int64_t strip = std::min(kStrip, count - first);
      float score[kStrip];
      for (std::int64_t c = 0; c < strip; ++c) {
        score[c] = rows[first + c] - log_sum_exp[0];
      }
      for (std::int64_t q = 1; q < group; ++q) {
        const float* const row = rows + q * s.stride + first;
        for (std::int64_t c = 0; c < strip; ++c) {
          const float other = row[c] - log_sum_exp[q];
          score[c] = other > score[c] ? other : score[c];
        }
      }
      for (std::int64_t c = 0; c < strip; ++c) {
        keys[first + c] = radius[first + c] < 0 ? 0 : order_key(score[c]);
      }
    }
    std::int32_t* const selected = p.selected + pair * p.select;
    const std::int32_t taken = select_best(keys, count, p.select, selected);
    p.selected_count[pair] = taken;
    if (p.mass != nullptr) {
      float mass = 0;
      for (std::int64_t q = 0; q < group && taken > 0; ++q) {
        for (std::int32_t i = 0; i < taken; ++i) {
          gathered[i] = rows[q * s.stride + selected[i]];
        }
        float most, total;
        kernels.log_sum(gathered, taken, &most, &total);
        mass += total * std::exp(most - log_sum_exp[q]);
      }
      p.mass[pair] = mass / static_cast<float>(group);
    }
  });
}

}  // namespace skv::cpu
