#include "cpu/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "cpu/elements.h"
#include "cpu/slot_keys.h"
#include "moments.h"
#include "value_types.h"

namespace skv::cpu {
namespace {

// How the attention of one pair is cut, in this order of parts: selected, outliers, recent, tail, dropped.
constexpr std::int64_t kSelectedPartTokens = 256;
constexpr std::int64_t kRecentPartTokens = 256;
constexpr std::int64_t kMostChunkElements = 16 * SKV_MAX_HEAD_DIM;
// Scores of a block of tokens, query by query.
constexpr std::int64_t kStride = RebuiltKeys::kTokens;

std::int64_t selected_parts(const skv_sparse_attention_params& p) {
  return divide_up(static_cast<std::int64_t>(p.select) * p.geometry.chunk, kSelectedPartTokens);
}
std::int64_t recent_parts(const skv_geometry& g) {
  return divide_up(g.window, kRecentPartTokens);
}
std::int64_t tail_parts(const skv_sparse_attention_params& p) {
  return p.tail == nullptr ? 0 : 1;
}
std::int64_t dropped_parts(const skv_sparse_attention_params& p) {
  return p.dropped == nullptr ? 0 : 1;
}

// Keys of a part of each thread, where they are rounded but not kept.
std::uint64_t rounded_bytes(const skv_geometry& g, const ExecutionTraits& traits) {
  return Workspace::align(
      static_cast<std::uint64_t>(traits.threads * kSelectedPartTokens * g.head_dim * element_bytes(g.storage_type)));
}

}  // namespace

std::uint64_t sparse_attention_workspace(const skv_sparse_attention_params& p, const ExecutionTraits& traits) {
  // A tail and dropped tokens are counted whether there are any or not: who asks for a workspace may not have their
  // addresses yet.
  constexpr std::int64_t kOutlierParts = 4, kTailParts = 1, kDroppedParts = 1;
  const skv_geometry& g = p.geometry;
  return prepared_query_bytes(g, p.batch) +
         AttentionParts::bytes(head_pairs(g, p.batch),
                               selected_parts(p) + kOutlierParts + recent_parts(g) + kTailParts + kDroppedParts,
                               group_size(g), g.head_dim) +
         Workspace::bytes_of<RebuiltKeys>(static_cast<std::uint64_t>(traits.threads)) +
         static_cast<std::uint64_t>(traits.threads) * RebuiltKeys::bytes(g, traits) + rounded_bytes(g, traits);
}

SparseAttention::SparseAttention(const skv_sparse_attention_params& p, Execution& execution, const Rerank* reranked,
                                 bool kept)
    : p_(p),
      kernels_(attention_kernels(execution.set)),
      reranked_(reranked),
      kept_(kept),
      traits_(execution.traits()),
      pairs_(head_pairs(p.geometry, p.batch)),
      selected_parts_(selected_parts(p)),
      recent_parts_(recent_parts(p.geometry)),
      tail_parts_(tail_parts(p)),
      dropped_parts_(dropped_parts(p)),
      group_(group_size(p.geometry)),
      unpack_(is_packed(p.geometry.value_type) ? unpack_function(p.geometry.value_type, execution.set) : nullptr) {
  const skv_geometry& g = p.geometry;
  check_shadow_geometry(g, p.query_type, "sparse_attention");
  check_shadow_geometry(g, p.output_type, "sparse_attention");
  Workspace& workspace = execution.workspace;
  workspace.require(sparse_attention_workspace(p, traits_), "sparse_attention");
  queries_ = prepare_queries(g, p.batch, p.query_type, p.queries, execution);
  sums_ = AttentionParts(pairs_, parts(), group_, g.head_dim, workspace);
  keys_ = workspace.take<RebuiltKeys>(static_cast<std::uint64_t>(traits_.threads));
  for (int thread = 0; thread < traits_.threads; ++thread) {
    new (keys_ + thread) RebuiltKeys(g, kernels_, traits_, workspace);
  }
  rounded_ = workspace.take<std::byte>(rounded_bytes(g, traits_));
}

// Attention of one token over selected chunks (keys rebuilt), outliers and the recent window.
//
// Bound by the rebuilding: S * C * r * D multiply-adds a key/value head (bf16 with AVX-512 BF16: two an instruction and
// lane, exact products), against S * C * (r + D) elements read. A block of rebuilt keys never leaves the nearest
// caches. Cycles a token on Zen 4 at r 160, D 128 and four queries, where the products of the rebuilding are 640 at
// least: rebuilding 646, rotation 65, scores 37, softmax 10, values 50; all together 880 with everything in the second
// cache, 970 for chunks anywhere in 40 MB of coefficients and 31 MB of values.
void SparseAttention::attend(std::int64_t pair, std::int64_t number, int thread) const {
  const skv_geometry& g = p_.geometry;
  const skv_session_state& state = p_.states[pair / g.key_value_heads];
  if (state.length == 0) {
    return;
  }
  const Part part = {pair,
                     pair % g.key_value_heads,
                     p_.layers[pair / g.key_value_heads],
                     queries_ + pair * group_ * padded_dim(g.head_dim),
                     sums_.begin(pair, number),
                     sums_.sums(pair, number)};
  if (number < selected_parts_) {
    const std::int64_t chunks = kSelectedPartTokens / g.chunk;
    const std::int64_t end = std::min<std::int64_t>((number + 1) * chunks, p_.selected_count[pair]);
    selected(part, number * chunks, end, thread);
  } else if (number < selected_parts_ + kOutlierParts) {
    const std::int64_t each = divide_up(state.outliers, kOutlierParts), first = (number - selected_parts_) * each;
    const std::int64_t end = std::min<std::int64_t>(first + each, state.outliers);
    if (first < end) {
      rows(part, part.layer.outlier_keys, part.layer.outlier_values,
           (part.head * part.layer.outlier_capacity + first) * g.chunk, (end - first) * g.chunk);
    }
  } else if (number < selected_parts_ + kOutlierParts + recent_parts_) {
    const std::int64_t first = state.recent_begin + (number - selected_parts_ - kOutlierParts) * kRecentPartTokens;
    recent(part, first, std::min(first + kRecentPartTokens, state.length));
  } else if (number < selected_parts_ + kOutlierParts + recent_parts_ + tail_parts_) {
    tail(part);
  } else {
    dropped(part);
  }
}

void SparseAttention::combine(std::int64_t pair) const {
  const skv_geometry& g = p_.geometry;
  sums_.combine(pair, p_.states[pair / g.key_value_heads].length == 0 ? 0 : parts(), p_.output_type,
                element_at(p_.output, p_.output_type, pair * group_ * g.head_dim),
                p_.log_sum_exp == nullptr ? nullptr : p_.log_sum_exp + pair * group_, traits_);
}

void SparseAttention::selected(const Part& part, std::int64_t first, std::int64_t end, int thread) const {
  if (reranked_ != nullptr) {
    scored(part, first, end);
  } else if (rounds_keys(part.layer)) {
    rounded(part, first, end, thread);
  } else {
    rebuilt(part, first, end, keys_[thread]);
  }
}

void SparseAttention::scored(const Part& part, std::int64_t first, std::int64_t end) const {
  const skv_geometry& g = p_.geometry;
  const std::int64_t block = kStride / g.chunk;
  alignas(64) float scores[SKV_MAX_GROUP * kStride];
  for (std::int64_t at = first; at < end; at += block) {
    const std::int64_t count = std::min(block, end - at);
    for (std::int64_t i = at == first ? at : at + count; i < std::min(at + count + block, end); ++i) {
      fetch_ahead(values(part, i), value_bytes(part));
    }
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t q = 0; q < group_; ++q) {
        std::copy_n(reranked_->scores(part.pair, at + i, q), g.chunk, scores + q * kStride + i * g.chunk);
      }
    }
    weigh(part, at, count, scores);
  }
}

void SparseAttention::rebuilt(const Part& part, std::int64_t first, std::int64_t end, RebuiltKeys& keys) const {
  const skv_geometry& g = p_.geometry;
  const std::int32_t* const chunks = p_.selected + part.pair * p_.select;
  const std::int64_t block = RebuiltKeys::chunks_of_block(g);
  alignas(64) float scores[SKV_MAX_GROUP * kStride];
  for (std::int64_t at = first; at < end; at += block) {
    const std::int64_t count = std::min(block, end - at);
    for (std::int64_t i = 0; i < count; ++i) {
      keys.expect(values(part, at + i), value_bytes(part));
    }
    for (std::int64_t i = at + count; i < std::min(at + count + block, end); ++i) {
      keys.expect(part.layer, chunks[i]);
    }
    const float* const rows = keys.rebuild(part.layer, p_.rope, part.pair, part.head, chunks + at, count);
    kernels_.rows[SKV_F32].score(part.queries, group_, rows, count * g.chunk,
                                 static_cast<std::int32_t>(padded_dim(g.head_dim)), scores, kStride);
    weigh(part, at, count, scores);
  }
}

// Keys of the storage type, out of their slots or made for this part alone: from there on it is the same.
void SparseAttention::rounded(const Part& part, std::int64_t first, std::int64_t end, int thread) const {
  const skv_geometry& g = p_.geometry;
  const std::int32_t* const chunks = p_.selected + part.pair * p_.select;
  const std::int32_t* const slots = p_.selected_slot + part.pair * p_.select;
  constexpr std::int64_t kMostChunks = kSelectedPartTokens / kRebuiltGroup;
  void* keys[kMostChunks];
  const void* rows[kMostChunks];
  for (std::int64_t i = 0; i < end - first; ++i) {
    keys[i] = kept_ ? slot_keys(g, part.layer, part.head, slots[first + i])
                    : element_at(rounded_, g.storage_type,
                                 (thread * kSelectedPartTokens + i * g.chunk) * static_cast<std::int64_t>(g.head_dim));
    rows[i] = values(part, first + i);
  }
  const std::int64_t block = RebuiltKeys::chunks_of_block(g);
  for (std::int64_t at = first; at < end && !kept_; at += block) {
    const std::int64_t count = std::min(block, end - at);
    for (std::int64_t i = at + count; i < std::min(at + count + block, end); ++i) {
      keys_[thread].expect(part.layer, chunks[i]);
    }
    keys_[thread].rebuild_to(part.layer, p_.rope, part.pair, part.head, chunks + at, count, keys + (at - first));
  }
  if (value_type(part) == g.storage_type) {
    kernels_.rows[g.storage_type].attend_chunks(part.queries, group_, keys, rows, end - first, g.chunk, g.head_dim,
                                                part.softmax, part.sums);
    return;
  }
  alignas(64) float scores[SKV_MAX_GROUP * kStride];
  for (std::int64_t at = first; at < end; at += block) {
    const std::int64_t count = std::min(block, end - at);
    for (std::int64_t i = at == first ? at : at + count; i < std::min(at + count + block, end); ++i) {
      fetch_ahead(rows[i - first], value_bytes(part));
    }
    kernels_.rows[g.storage_type].score_chunks(part.queries, group_, keys + (at - first), count, g.chunk, g.head_dim,
                                               scores, kStride);
    weigh(part, at, count, scores);
  }
}

// Adds the values of a block of chunks by the scores [G][kStride] of its tokens, which become their weights.
void SparseAttention::weigh(const Part& part, std::int64_t first, std::int64_t count, float* scores) const {
  const skv_geometry& g = p_.geometry;
  kernels_.soften(scores, kStride, group_, count * g.chunk, part.softmax, part.sums, g.head_dim);
  const std::int32_t stored = value_type(part), type = slot_type(stored);
  alignas(64) std::byte unpacked[kMostChunkElements * sizeof(BFloat16)];
  for (std::int64_t i = 0; i < count; ++i) {
    float* const weights = scores + i * g.chunk;
    const void* rows = values(part, first + i);
    float scale = 1.0F;
    if (is_scaled(stored)) {
      const std::int32_t chunk = p_.selected[part.pair * p_.select + first + i];
      scale = part.layer.value_scales[part.head * part.layer.chunk_capacity + chunk];
    }
    if (is_packed(stored)) {
      unpack_(rows, scale, unpacked, static_cast<std::int64_t>(g.chunk) * g.head_dim);
      rows = unpacked;
    }
    if (is_scaled(type)) {
      for (std::int64_t row = 0; row < group_; ++row) {
        for (std::int64_t t = 0; t < g.chunk; ++t) {
          weights[row * kStride + t] *= scale;
        }
      }
    }
    kernels_.rows[type].accumulate(weights, kStride, group_, rows, g.chunk, g.head_dim, part.sums);
  }
}

void SparseAttention::recent(const Part& part, std::int64_t first, std::int64_t end) const {
  const std::int64_t window = p_.geometry.window;
  while (first < end) {
    const std::int64_t row = first % window, count = std::min(end - first, window - row);
    rows(part, part.layer.recent_keys, part.layer.recent_values, part.head * window + row, count);
    first += count;
  }
}

// All that was left out as one token: the weight that selection gave it, and the value that is to be expected of keys
// so weighted, were keys and values jointly normal: mean(v) + cov(v, k) q, with q over sqrt(D) already. Of the sums M
// of v k^T, V, K and n that is (V (1 - K.q / n) + M q) / n. Reads the moments of a head, D * D floats, once.
void SparseAttention::tail(const Part& part) const {
  const std::int64_t dim = p_.geometry.head_dim, width = padded_dim(dim);
  const MomentLayout layout(dim);
  const float* const log_weight = p_.tail + part.pair * group_;
  const float* const moments = part.layer.moments == nullptr ? nullptr : part.layer.moments + part.head * layout.floats;
  if (moments == nullptr || !(moments[layout.count] > 0)) {
    return;
  }
  // The sum of keys lies behind the last row of products.
  const std::int64_t rows = dim + 1;
  static_assert(MomentLayout(SKV_MAX_HEAD_DIM).keys == SKV_MAX_HEAD_DIM * SKV_MAX_HEAD_DIM);
  constexpr std::int64_t kStride = SKV_MAX_HEAD_DIM + kScoreMultiple;
  alignas(64) float products[SKV_MAX_GROUP * kStride];
  kernels_.rows[SKV_F32].score(part.queries, group_, moments, rows, static_cast<int>(dim), products, kStride);
  const float* const values = moments + layout.values;
  const float share = 1.0F / moments[layout.count];
  for (std::int64_t q = 0; q < group_; ++q) {
    if (!std::isfinite(log_weight[q])) {
      continue;
    }
    const float* const product = products + q * kStride;
    const float own = 1.0F - product[dim] * share;
    for (std::int64_t d = 0; d < dim; ++d) {
      part.sums[q * width + d] = (values[d] * own + product[d]) * share;
    }
    part.softmax.largest[q] = log_weight[q];
    part.softmax.sum[q] = 1.0F;
  }
}

// What a rerank dropped, as one token of the weight and value that it gave them.
void SparseAttention::dropped(const Part& part) const {
  const std::int64_t dim = p_.geometry.head_dim, width = padded_dim(dim);
  for (std::int64_t q = 0; q < group_; ++q) {
    const std::int64_t row = part.pair * group_ + q;
    if (std::isfinite(p_.dropped[row])) {
      std::copy_n(p_.dropped_values + row * dim, dim, part.sums + q * width);
      part.softmax.largest[q] = p_.dropped[row];
      part.softmax.sum[q] = 1.0F;
    }
  }
}

const void* SparseAttention::values(const Part& part, std::int64_t number) const {
  const skv_geometry& g = p_.geometry;
  const std::int64_t at = part.pair * p_.select + number;
  const bool in_place = values_in_place(g, part.layer);
  const void* const base = in_place ? part.layer.values : part.layer.slot_values;
  const std::int64_t first = part.head * (in_place ? part.layer.chunk_capacity : g.slots);
  return static_cast<const char*>(base) +
         (first + (in_place ? p_.selected[at] : p_.selected_slot[at])) * value_bytes(part);
}

std::int32_t SparseAttention::value_type(const Part& part) const {
  const std::int32_t type = p_.geometry.value_type;
  return values_in_place(p_.geometry, part.layer) ? type : slot_type(type);
}

std::int64_t SparseAttention::value_bytes(const Part& part) const {
  return skv::value_bytes(value_type(part), static_cast<std::int64_t>(p_.geometry.chunk) * p_.geometry.head_dim);
}

void SparseAttention::rows(const Part& part, const void* keys, const void* values, std::int64_t first,
                           std::int64_t count) const {
  const skv_geometry& g = p_.geometry;
  kernels_.rows[g.storage_type].attend(part.queries, group_, element_at(keys, g.storage_type, first * g.head_dim),
                                       element_at(values, g.storage_type, first * g.head_dim), count, g.head_dim,
                                       part.softmax, part.sums);
}

void sparse_attention(const skv_sparse_attention_params& p, Execution& execution) {
  const SparseAttention attention(p, execution, nullptr, false);
  execution.pool.parallel_neighbours(
      attention.pairs() * attention.parts(), attention.parts(),
      [&](std::int64_t i, int thread) { attention.attend(i / attention.parts(), i % attention.parts(), thread); });
  execution.pool.parallel_for(attention.pairs(), [&](std::int64_t pair) { attention.combine(pair); });
}

}  // namespace skv::cpu
