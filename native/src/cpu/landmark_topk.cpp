#include "cpu/landmark_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/attention.h"
#include "cpu/elements.h"
#include "cpu/select_best.h"
#include "cpu/sums.h"

namespace skv::cpu {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// Chunks that one thread scores at a time.
constexpr std::int64_t kUnitChunks = kLandmarks;

struct Shape {
  std::int64_t pairs, units, stride;
  std::int32_t group;
};

Shape shape_of(const skv_landmark_topk_params& p) {
  return {head_pairs(p.geometry, p.batch), divide_up(p.max_chunks, kUnitChunks), score_stride(p.max_chunks),
          group_size(p.geometry)};
}

// Order keys, what select_best wants, and the logits of the selected.
std::uint64_t scratch_bytes(const skv_landmark_topk_params& p, std::int64_t stride) {
  return Workspace::bytes_of<std::uint32_t>(static_cast<std::uint64_t>(stride)) +
         Workspace::bytes_of<std::uint32_t>(static_cast<std::uint64_t>(select_best_scratch(stride))) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(p.select));
}

}  // namespace

std::uint64_t landmark_topk_workspace(const skv_landmark_topk_params& p, const ExecutionTraits& traits) {
  const Shape s = shape_of(p);
  return prepared_query_bytes(p.geometry, p.batch) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(s.pairs * s.group * s.stride)) +
         2 * Workspace::bytes_of<float>(static_cast<std::uint64_t>(s.pairs * s.units * s.group)) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(s.pairs * s.group)) +
         static_cast<std::uint64_t>(traits.threads) * scratch_bytes(p, s.stride);
}

LandmarkTopk::LandmarkTopk(const skv_landmark_topk_params& p, Execution& execution)
    : p_(p), kernels_(attention_kernels(execution.set)) {
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
  const Shape s = shape_of(p);
  pairs_ = s.pairs;
  units_ = s.units;
  stride_ = s.stride;
  group_ = s.group;
  queries_ = prepare_queries(g, p.batch, p.query_type, p.queries, execution);
  Workspace& workspace = execution.workspace;
  logits_ = workspace.take<float>(static_cast<std::uint64_t>(s.pairs * s.group * s.stride));
  largest_ = workspace.take<float>(static_cast<std::uint64_t>(s.pairs * s.units * s.group));
  weights_ = workspace.take<float>(static_cast<std::uint64_t>(s.pairs * s.group));
  for (std::int64_t row = 0; row < s.pairs * s.group; ++row) {
    weights_[row] = weight_of_radius(queries_ + row * padded_dim(g.head_dim));
  }
  sum_ = workspace.take<float>(static_cast<std::uint64_t>(s.pairs * s.units * s.group));
  thread_bytes_ = scratch_bytes(p, s.stride);
  thread_memory_ = workspace.take<std::byte>(thread_bytes_ * static_cast<std::uint64_t>(traits.threads));
}

std::int64_t LandmarkTopk::indexed(std::int64_t pair) const {
  const skv_session_state& state = p_.states[pair / p_.geometry.key_value_heads];
  return state.length == 0 ? 0 : state.indexed_chunks;
}

// Landmarks [K][chunk_capacity][D], of which the indexed are read once: that bounds it.
void LandmarkTopk::score(std::int64_t pair, std::int64_t unit) const {
  const skv_geometry& g = p_.geometry;
  const std::int64_t first = unit * kUnitChunks, head = pair % g.key_value_heads, width = padded_dim(g.head_dim);
  const std::int64_t count = std::min(kUnitChunks, indexed(pair) - first);
  if (count <= 0) {
    return;
  }
  const skv_shadow_layer& layer = p_.layers[pair / g.key_value_heads];
  const std::int64_t at = head * layer.chunk_capacity + first;
  const float* const query = queries_ + pair * group_ * width;
  float* const rows = logits_ + pair * group_ * stride_ + first;
  const std::int64_t to = (pair * units_ + unit) * group_;
  kernels_.rows[g.landmark_type].landmarks(
      query, group_, weights_ + pair * group_,
      element_at(static_cast<const void*>(layer.landmarks), g.landmark_type, at * g.head_dim),
      g.landmark_type == SKV_I8 ? layer.landmark_scales + at : nullptr, layer.radius + at, count, g.head_dim, rows,
      stride_, largest_ + to, sum_ + to);
}

float LandmarkTopk::weight_of_radius(const float* query) const {
  const double squares = sum_in_lanes<double>(p_.geometry.head_dim, [=](std::int64_t d) {
    return static_cast<double>(query[d]) * static_cast<double>(query[d]);
  });
  return static_cast<float>(static_cast<double>(p_.radius_weight) * std::sqrt(squares));
}

// One score a chunk, and the best of those.
void LandmarkTopk::choose(std::int64_t pair, int thread) const {
  const std::int64_t count = indexed(pair), units = divide_up(count, kUnitChunks);
  Workspace scratch(thread_memory_ + static_cast<std::uint64_t>(thread) * thread_bytes_, thread_bytes_);
  std::uint32_t* __restrict__ const keys = scratch.take<std::uint32_t>(static_cast<std::uint64_t>(stride_));
  std::uint32_t* const for_selection =
      scratch.take<std::uint32_t>(static_cast<std::uint64_t>(select_best_scratch(stride_)));
  float* const gathered = scratch.take<float>(static_cast<std::uint64_t>(p_.select));
  float* const rows = logits_ + pair * group_ * stride_;
  float log_sum_exp[SKV_MAX_GROUP];
  for (std::int64_t q = 0; q < group_; ++q) {
    float most = kNothing, total = 0;
    for (std::int64_t unit = 0; unit < units; ++unit) {
      most = std::max(most, largest_[(pair * units_ + unit) * group_ + q]);
    }
    for (std::int64_t unit = 0; unit < units; ++unit) {
      const std::int64_t at = (pair * units_ + unit) * group_ + q;
      total += largest_[at] == kNothing ? sum_[at] : sum_[at] * std::exp(largest_[at] - most);
    }
    log_sum_exp[q] = most + std::log(total);
  }
  const std::int64_t heads = p_.geometry.key_value_heads;
  const skv_shadow_layer& layer = p_.layers[pair / heads];
  const float* const radius = layer.radius + pair % heads * layer.chunk_capacity;
  kernels_.order_chunks(rows, stride_, group_, log_sum_exp, radius, count, keys);
  std::int32_t* const selected = p_.selected + pair * p_.select;
  const std::int32_t taken = select_best(keys, count, p_.select, selected, for_selection);
  p_.selected_count[pair] = taken;
  if (p_.mass != nullptr) {
    float mass = 0;
    for (std::int64_t q = 0; q < group_ && taken > 0; ++q) {
      for (std::int32_t i = 0; i < taken; ++i) {
        gathered[i] = rows[q * stride_ + selected[i]];
      }
      float most, total;
      kernels_.log_sum(gathered, taken, &most, &total);
      mass += total * std::exp(most - log_sum_exp[q]);
    }
    p_.mass[pair] = mass / static_cast<float>(group_);
  }
  if (p_.tail != nullptr) {
    leave(pair, rows, selected, taken);
  }
}

// Sums over what is left are taken anew rather than as a difference: what the selection holds may be almost all. An
// exponential a chunk and query; the logits of the selected are spent for it.
void LandmarkTopk::leave(std::int64_t pair, float* rows, const std::int32_t* selected, std::int32_t taken) const {
  const std::int64_t heads = p_.geometry.key_value_heads;
  const skv_shadow_layer& layer = p_.layers[pair / heads];
  const float* const radius = layer.radius + pair % heads * layer.chunk_capacity;
  for (std::int64_t q = 0; q < group_; ++q) {
    float* const row = rows + q * stride_;
    for (std::int32_t i = 0; i < taken; ++i) {
      row[selected[i]] = kNothing;
    }
    float most, total;
    kernels_.log_sum_of_means(row, radius, weights_[pair * group_ + q], indexed(pair), &most, &total);
    p_.tail[pair * group_ + q] =
        log_of_sum(most, total) + static_cast<float>(std::log(static_cast<double>(p_.geometry.chunk)));
  }
}

void landmark_topk(const skv_landmark_topk_params& p, Execution& execution) {
  const LandmarkTopk topk(p, execution);
  execution.pool.parallel_neighbours(topk.pairs() * topk.units(), topk.units(),
                                     [&](std::int64_t i) { topk.score(i / topk.units(), i % topk.units()); });
  execution.pool.parallel_for(topk.pairs(), [&](std::int64_t pair, int thread) { topk.choose(pair, thread); });
}

}  // namespace skv::cpu
