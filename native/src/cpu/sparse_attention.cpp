#include <algorithm>
#include <new>

#include "cpu/attention.h"
#include "cpu/elements.h"
#include "cpu/rebuilt_keys.h"

namespace skv::cpu {
namespace {

// How the attention of one pair is cut, in this order of parts.
constexpr std::int64_t kSelectedPartTokens = 256;
constexpr std::int64_t kOutlierParts = 4;
constexpr std::int64_t kRecentPartTokens = 256;

struct PartPlan {
  std::int64_t selected, recent;
  std::int64_t total() const { return selected + kOutlierParts + recent; }
};

PartPlan plan_parts(const skv_geometry& g, std::int32_t select) {
  return {divide_up(static_cast<std::int64_t>(select) * g.chunk, kSelectedPartTokens),
          divide_up(g.window, kRecentPartTokens)};
}

// One part of one pair.
class Part {
 public:
  Part(const skv_sparse_attention_params& p, const AttentionKernels& kernels, std::int64_t pair, const float* queries,
       const RunningSoftmax& softmax, float* sums)
      : p_(p),
        g_(p.geometry),
        kernels_(kernels),
        pair_(pair),
        head_(pair % g_.key_value_heads),
        layer_(p.layers[pair / g_.key_value_heads]),
        queries_(queries),
        softmax_(softmax),
        sums_(sums) {}

  void selected(std::int64_t first, std::int64_t end, RebuiltKeys& keys) const {
    const std::int32_t* const chunks = p_.selected + pair_ * p_.select;
    const std::int32_t* const slots = p_.selected_slot + pair_ * p_.select;
    const std::int64_t block = RebuiltKeys::chunks_of_block(g_);
    const std::int32_t group = group_size(g_), width = static_cast<std::int32_t>(padded_dim(g_.head_dim));
    const std::int64_t chunk_elements = static_cast<std::int64_t>(g_.chunk) * g_.head_dim;
    alignas(64) float scores[SKV_MAX_GROUP * RebuiltKeys::kTokens];
    for (std::int64_t at = first; at < end; at += block) {
      const std::int64_t count = std::min(block, end - at);
      for (std::int64_t i = 0; i < count; ++i) {
        fetch_ahead(values(slots[at + i]), chunk_elements * element_bytes(g_.value_type));
      }
      for (std::int64_t i = at + count; i < std::min(at + count + block, end); ++i) {
        keys.expect(layer_, chunks[i]);
      }
      const float* const rebuilt = keys.rebuild(layer_, p_.rope, pair_, head_, chunks + at, count);
      kernels_.rows[SKV_F32].score(queries_, group, rebuilt, count * g_.chunk, width, scores, RebuiltKeys::kTokens);
      kernels_.soften(scores, RebuiltKeys::kTokens, group, count * g_.chunk, softmax_, sums_, g_.head_dim);
      for (std::int64_t i = 0; i < count; ++i) {
        float* const weights = scores + i * g_.chunk;
        if (g_.value_type == SKV_F8_E4M3) {
          const float scale = layer_.value_scales[head_ * layer_.chunk_capacity + chunks[at + i]];
          for (std::int64_t row = 0; row < group; ++row) {
            for (std::int64_t t = 0; t < g_.chunk; ++t) {
              weights[row * RebuiltKeys::kTokens + t] *= scale;
            }
          }
        }
        kernels_.rows[g_.value_type].accumulate(weights, RebuiltKeys::kTokens, group, values(slots[at + i]), g_.chunk,
                                                g_.head_dim, sums_);
      }
    }
  }

  void outliers(std::int64_t first, std::int64_t end) const {
    const std::int64_t at = (head_ * layer_.outlier_capacity + first) * g_.chunk;
    rows(layer_.outlier_keys, layer_.outlier_values, at, (end - first) * g_.chunk);
  }

  void recent(std::int64_t first, std::int64_t end) const {
    while (first < end) {
      const std::int64_t row = first % g_.window;
      const std::int64_t count = std::min(end - first, g_.window - row);
      rows(layer_.recent_keys, layer_.recent_values, head_ * g_.window + row, count);
      first += count;
    }
  }

 private:
  const void* values(std::int32_t slot) const {
    const bool in_place = g_.slots == 0;
    const void* const base = in_place ? layer_.values : layer_.slot_values;
    const std::int64_t places = in_place ? layer_.chunk_capacity : g_.slots;
    return element_at(base, g_.value_type, (head_ * places + slot) * g_.chunk * g_.head_dim);
  }

  void rows(const void* keys, const void* values, std::int64_t first, std::int64_t count) const {
    kernels_.rows[g_.storage_type].attend(
        queries_, group_size(g_), element_at(keys, g_.storage_type, first * g_.head_dim),
        element_at(values, g_.storage_type, first * g_.head_dim), count, g_.head_dim, softmax_, sums_);
  }

  const skv_sparse_attention_params& p_;
  const skv_geometry& g_;
  const AttentionKernels& kernels_;
  std::int64_t pair_, head_;
  const skv_shadow_layer& layer_;
  const float* queries_;
  RunningSoftmax softmax_;
  float* sums_;
};

}  // namespace

std::uint64_t sparse_attention_workspace(const skv_sparse_attention_params& p, const ExecutionTraits& traits) {
  const skv_geometry& g = p.geometry;
  return prepared_query_bytes(g, p.batch) +
         AttentionParts::bytes(head_pairs(g, p.batch), plan_parts(g, p.select).total(), group_size(g), g.head_dim) +
         Workspace::bytes_of<RebuiltKeys>(static_cast<std::uint64_t>(traits.threads)) +
         static_cast<std::uint64_t>(traits.threads) * RebuiltKeys::bytes(g, traits);
}

// Attention of one token over selected chunks (keys rebuilt), outliers and the recent window.
//
// Bound by the rebuilding: S * C * r * D multiply-adds a key/value head (bf16 with AVX-512: two an instruction and
// lane, exact products), against S * C * (r + D) elements read. A block of rebuilt keys never leaves the nearest
// caches.
void sparse_attention(const skv_sparse_attention_params& p, Execution& execution) {
  const skv_geometry& g = p.geometry;
  check_shadow_geometry(g, p.query_type, "sparse_attention");
  check_shadow_geometry(g, p.output_type, "sparse_attention");
  const ExecutionTraits traits = execution.traits();
  execution.workspace.require(sparse_attention_workspace(p, traits), "sparse_attention");
  Workspace& workspace = execution.workspace;
  const std::int32_t group = group_size(g), dim = g.head_dim;
  const std::int64_t heads = g.key_value_heads, pairs = head_pairs(g, p.batch);
  const PartPlan plan = plan_parts(g, p.select);
  const std::int64_t parts = plan.total();
  const float* const queries = prepare_queries(g, p.batch, p.query_type, p.queries, execution);
  const AttentionParts sums(pairs, parts, group, dim, workspace);
  const AttentionKernels& kernels = attention_kernels(execution.set);
  RebuiltKeys* const keys = workspace.take<RebuiltKeys>(static_cast<std::uint64_t>(traits.threads));
  for (int thread = 0; thread < traits.threads; ++thread) {
    new (keys + thread) RebuiltKeys(g, kernels, traits, workspace);
  }

  execution.pool.parallel_for(pairs * parts, [&](std::int64_t unit, int thread) {
    const std::int64_t pair = unit / parts, part = unit % parts;
    const skv_session_state& state = p.states[pair / heads];
    if (state.length == 0) {
      return;
    }
    const Part work(p, kernels, pair, queries + pair * group * padded_dim(dim), sums.begin(pair, part),
                    sums.sums(pair, part));
    if (part < plan.selected) {
      const std::int64_t chunks = kSelectedPartTokens / g.chunk;
      const std::int64_t end = std::min<std::int64_t>((part + 1) * chunks, p.selected_count[pair]);
      work.selected(part * chunks, end, keys[thread]);
    } else if (part < plan.selected + kOutlierParts) {
      const std::int64_t each = divide_up(state.outliers, kOutlierParts), first = (part - plan.selected) * each;
      const std::int64_t end = std::min<std::int64_t>(first + each, state.outliers);
      if (first < end) {
        work.outliers(first, end);
      }
    } else {
      const std::int64_t first = state.recent_begin + (part - plan.selected - kOutlierParts) * kRecentPartTokens;
      work.recent(first, std::min(first + kRecentPartTokens, state.length));
    }
  });
  execution.pool.parallel_for(pairs, [&](std::int64_t pair) {
    sums.combine(pair, p.states[pair / heads].length == 0 ? 0 : parts, p.output_type,
                 element_at(p.output, p.output_type, pair * group * dim),
                 p.log_sum_exp == nullptr ? nullptr : p.log_sum_exp + pair * group, traits);
  });
}

}  // namespace skv::cpu
