#include "cpu/rerank.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "cpu/attention.h"
#include "cpu/elements.h"
#include "cpu/select_best.h"
#include "cpu/slot_keys.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kUnitTokens = 256;
// Tokens that are dropped together: their coefficients stay near until they are added.
constexpr std::int64_t kDroppedTokens = 64;
// So wide are rows of coefficients and of values.
static_assert(padded_dim(SKV_MAX_RANK) == SKV_MAX_RANK && padded_dim(SKV_MAX_HEAD_DIM) == SKV_MAX_HEAD_DIM);
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Order keys of a shortlist and what select_best wants.
std::int64_t order_elements(std::int64_t stride) {
  return stride + select_best_scratch(stride);
}

std::int64_t key_bytes(const skv_geometry& g) {
  return static_cast<std::int64_t>(g.chunk) * g.head_dim * element_bytes(g.storage_type);
}

// Keys of a block of chunks, where they are rounded but not kept.
std::uint64_t block_bytes(const skv_geometry& g) {
  return Workspace::align(static_cast<std::uint64_t>(RebuiltKeys::chunks_of_block(g) * key_bytes(g)));
}

}  // namespace

std::uint64_t rerank_workspace(const skv_rerank_params& p, const ExecutionTraits& traits) {
  const skv_geometry& g = p.geometry;
  const std::uint64_t threads = static_cast<std::uint64_t>(traits.threads);
  const std::int64_t stride = score_stride(p.shortlist_stride), rows = head_pairs(g, p.batch) * group_size(g);
  return prepared_query_bytes(g, p.batch) + Workspace::bytes_of<float>(static_cast<std::uint64_t>(rows * stride)) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(rows * stride * g.chunk)) +
         Workspace::bytes_of<std::int32_t>(static_cast<std::uint64_t>(head_pairs(g, p.batch) * p.select)) +
         Workspace::bytes_of<RebuiltKeys>(threads) + threads * (RebuiltKeys::bytes(g, traits) + block_bytes(g)) +
         Workspace::bytes_of<std::uint32_t>(threads * static_cast<std::uint64_t>(order_elements(stride)));
}

Rerank::Rerank(const skv_rerank_params& p, Execution& execution, const std::int32_t* key_slot)
    : p_(p), kernels_(attention_kernels(execution.set)), key_slot_(key_slot) {
  const skv_geometry& g = p.geometry;
  check_shadow_geometry(g, p.query_type, "rerank");
  const ExecutionTraits traits = execution.traits();
  execution.workspace.require(rerank_workspace(p, traits), "rerank");
  Workspace& workspace = execution.workspace;
  const std::uint64_t threads = static_cast<std::uint64_t>(traits.threads);
  group_ = group_size(g);
  pairs_ = head_pairs(g, p.batch);
  units_ = divide_up(p.shortlist_stride, kUnitTokens / g.chunk);
  stride_ = score_stride(p.shortlist_stride);
  token_stride_ = stride_ * g.chunk;
  order_stride_ = order_elements(stride_);
  queries_ = prepare_queries(g, p.batch, p.query_type, p.queries, execution);
  chunk_mass_ = workspace.take<float>(static_cast<std::uint64_t>(pairs_ * group_ * stride_));
  scores_ = workspace.take<float>(static_cast<std::uint64_t>(pairs_ * group_ * token_stride_));
  places_ = workspace.take<std::int32_t>(static_cast<std::uint64_t>(pairs_ * p.select));
  keys_ = workspace.take<RebuiltKeys>(threads);
  for (int thread = 0; thread < traits.threads; ++thread) {
    new (keys_ + thread) RebuiltKeys(g, kernels_, traits, workspace);
  }
  rounded_ = workspace.take<std::byte>(threads * block_bytes(g));
  order_ = workspace.take<std::uint32_t>(threads * static_cast<std::uint64_t>(order_stride_));
}

std::int64_t Rerank::listed(std::int64_t pair) const {
  return p_.states[pair / p_.geometry.key_value_heads].length == 0
             ? 0
             : std::min(p_.shortlist_count[pair], p_.shortlist_stride);
}

// Exact attention mass of shortlisted chunks. Bound by the rebuilding of their keys, as sparse_attention is.
void Rerank::score(std::int64_t pair, std::int64_t unit, int thread) const {
  const skv_geometry& g = p_.geometry;
  const std::int64_t chunk = g.chunk, width = padded_dim(g.head_dim), heads = g.key_value_heads;
  const std::int64_t unit_chunks = kUnitTokens / chunk, first = unit * unit_chunks;
  const std::int64_t end = std::min(first + unit_chunks, listed(pair)), block = RebuiltKeys::chunks_of_block(g);
  const skv_shadow_layer& layer = p_.layers[pair / heads];
  const std::int32_t* const chunks = p_.shortlist + pair * p_.shortlist_stride;
  for (std::int64_t at = first; at < end; at += block) {
    const std::int64_t count = std::min(block, end - at);
    for (std::int64_t i = at + count; i < std::min(at + count + block, end); ++i) {
      if (key_slot_ != nullptr) {
        fetch_ahead(slot_keys(g, layer, pair % heads, key_slot_[pair * p_.shortlist_stride + i]), key_bytes(g));
      } else {
        keys_[thread].expect(layer, chunks[i]);
      }
    }
    float* const scores = scores_ + pair * group_ * token_stride_ + at * chunk;
    const float* const queries = queries_ + pair * group_ * width;
    if (rounds_keys(layer)) {
      void* keys[RebuiltKeys::kTokens / kRebuiltGroup];
      rounded(pair, at, count, thread, keys);
      kernels_.rows[g.storage_type].score_chunks(queries, group_, keys, count, g.chunk, g.head_dim, scores,
                                                 token_stride_);
    } else {
      const float* const rebuilt = keys_[thread].rebuild(layer, p_.rope, pair, pair % heads, chunks + at, count);
      kernels_.rows[SKV_F32].score(queries, group_, rebuilt, count * chunk, static_cast<std::int32_t>(width), scores,
                                   token_stride_);
    }
    for (std::int64_t q = 0; q < group_; ++q) {
      for (std::int64_t i = 0; i < count; ++i) {
        float largest, sum;
        kernels_.log_sum(scores + q * token_stride_ + i * chunk, chunk, &largest, &sum);
        chunk_mass_[(pair * group_ + q) * stride_ + at + i] = largest + std::log(sum);
      }
    }
  }
}

// Keys of a block of the shortlist, of the storage type: out of their slots, or made here.
void Rerank::rounded(std::int64_t pair, std::int64_t first, std::int64_t count, int thread, void** keys) const {
  const skv_geometry& g = p_.geometry;
  const std::int64_t heads = g.key_value_heads, at = pair * p_.shortlist_stride + first;
  const skv_shadow_layer& layer = p_.layers[pair / heads];
  for (std::int64_t i = 0; i < count; ++i) {
    keys[i] = key_slot_ != nullptr ? slot_keys(g, layer, pair % heads, key_slot_[at + i])
                                   : rounded_ + (static_cast<std::uint64_t>(thread) * block_bytes(g) +
                                                 static_cast<std::uint64_t>(i * key_bytes(g)));
  }
  if (key_slot_ == nullptr) {
    keys_[thread].rebuild_to(layer, p_.rope, pair, pair % heads, p_.shortlist + at, count, keys);
  }
}

void Rerank::choose(std::int64_t pair, int thread) const {
  const std::int64_t count = listed(pair);
  float* const rows = chunk_mass_ + pair * group_ * stride_;
  const std::int32_t* const chunks = p_.shortlist + pair * p_.shortlist_stride;
  std::uint32_t* const best = order_ + thread * order_stride_;
  float total[SKV_MAX_GROUP];
  for (std::int64_t q = 0; q < group_; ++q) {
    float largest, sum;
    kernels_.log_sum(rows + q * stride_, count, &largest, &sum);
    total[q] = largest + std::log(sum);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    float mass = rows[i] - total[0];
    for (std::int64_t q = 1; q < group_; ++q) {
      const float other = rows[q * stride_ + i] - total[q];
      mass = other > mass ? other : mass;
    }
    best[i] = order_key(mass);
  }
  std::int32_t* const places = places_ + pair * p_.select;
  const std::int32_t taken = select_best(best, count, p_.select, places, best + stride_);
  for (std::int32_t i = 0; i < taken; ++i) {
    p_.selected[pair * p_.select + i] = chunks[places[i]];
  }
  p_.selected_count[pair] = taken;
  const bool predicts = p_.dropped != nullptr && p_.layers[pair / p_.geometry.key_value_heads].value_basis != nullptr;
  if (p_.dropped != nullptr) {
    std::fill_n(p_.dropped + pair * group_, group_, kNothing);
  }
  if (predicts && taken < count) {
    predict(pair, places, taken);
  } else if (!predicts && p_.tail != nullptr) {
    leave(pair, rows, places, taken);
  }
}

// Weight and value of the tokens that are dropped: their scores are there, their coefficients, weighted and summed,
// give the value by one product with the basis of values. G * r multiply-adds a token, a few of a hundred of what its
// key took, and its coefficients read once more.
void Rerank::predict(std::int64_t pair, const std::int32_t* places, std::int32_t taken) const {
  const skv_geometry& g = p_.geometry;
  const skv_shadow_layer& layer = p_.layers[pair / g.key_value_heads];
  const std::int64_t rank_width = padded_dim(g.rank), width = padded_dim(g.head_dim);
  alignas(64) float sums[SKV_MAX_GROUP * SKV_MAX_RANK], values[SKV_MAX_GROUP * SKV_MAX_HEAD_DIM];
  float largest[SKV_MAX_GROUP], sum[SKV_MAX_GROUP];
  std::fill_n(sums, group_ * rank_width, 0.0F);
  std::fill_n(values, group_ * width, 0.0F);
  std::fill_n(largest, group_, kNothing);
  std::fill_n(sum, group_, 0.0F);
  std::int32_t dropped[SKV_MAX_SELECT];  // places in the shortlist
  std::int64_t count = 0;
  for (std::int32_t i = 0, next = 0; i < listed(pair); ++i) {
    if (next < taken && places[next] == i) {
      ++next;
    } else {
      dropped[count++] = i;
    }
  }
  const std::int64_t block = kDroppedTokens / g.chunk;
  for (std::int64_t at = 0; at < count; at += block) {
    add_dropped(pair, dropped + at, std::min(block, count - at), count - at, {largest, sum}, sums);
  }
  kernels_.rows[g.storage_type].accumulate(
      sums, rank_width, group_,
      element_at(static_cast<const void*>(layer.value_basis), g.storage_type,
                 pair % g.key_value_heads * g.rank * static_cast<std::int64_t>(g.head_dim)),
      g.rank, g.head_dim, values);
  for (std::int64_t q = 0; q < group_; ++q) {
    const std::int64_t row = pair * group_ + q;
    const float share = 1.0F / sum[q];
    p_.dropped[row] = log_of_sum(largest[q], sum[q]);
    for (std::int64_t d = 0; d < g.head_dim; ++d) {
      p_.dropped_values[row * g.head_dim + d] = values[q * width + d] * share;
    }
  }
}

// Adds dropped chunks, by their places in the shortlist, to a running softmax whose values are coefficients; asks for
// those behind them, of which there are `left` with them.
void Rerank::add_dropped(std::int64_t pair, const std::int32_t* places, std::int64_t count, std::int64_t left,
                         const RunningSoftmax& softmax, float* sums) const {
  const skv_geometry& g = p_.geometry;
  const skv_shadow_layer& layer = p_.layers[pair / g.key_value_heads];
  const std::int32_t* const chunks = p_.shortlist + pair * p_.shortlist_stride;
  alignas(64) float weights[SKV_MAX_GROUP * kDroppedTokens];
  for (std::int64_t q = 0; q < group_; ++q) {
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(scores_ + (pair * group_ + q) * token_stride_ + places[i] * g.chunk, g.chunk,
                  weights + q * kDroppedTokens + i * g.chunk);
    }
  }
  kernels_.soften(weights, kDroppedTokens, group_, count * g.chunk, softmax, sums, g.rank);
  // Brought together, so that the sums are taken up and put down once a block.
  alignas(64) std::byte rows[kDroppedTokens * SKV_MAX_RANK * sizeof(float)];
  for (std::int64_t i = 0; i < count; ++i) {
    if (count + i < left) {
      fetch_ahead(coefficients(layer, chunks[places[count + i]]), coefficient_bytes());
    }
    std::memcpy(rows + i * coefficient_bytes(), coefficients(layer, chunks[places[i]]),
                static_cast<std::size_t>(coefficient_bytes()));
  }
  kernels_.rows[g.coefficient_type].accumulate(weights, kDroppedTokens, group_, rows, count * g.chunk, g.rank, sums);
}

const void* Rerank::coefficients(const skv_shadow_layer& layer, std::int64_t chunk) const {
  return element_at(static_cast<const void*>(layer.coefficients), p_.geometry.coefficient_type,
                    chunk * p_.geometry.chunk * p_.geometry.rank);
}

std::int64_t Rerank::coefficient_bytes() const {
  return static_cast<std::int64_t>(p_.geometry.chunk) * p_.geometry.rank * element_bytes(p_.geometry.coefficient_type);
}

// What is dropped joins what landmark_topk left; the masses `rows` of the selected are spent for it.
void Rerank::leave(std::int64_t pair, float* rows, const std::int32_t* places, std::int32_t taken) const {
  for (std::int64_t q = 0; q < group_; ++q) {
    float* const row = rows + q * stride_;
    for (std::int32_t i = 0; i < taken; ++i) {
      row[places[i]] = kNothing;
    }
    float both[2], largest, sum;
    kernels_.log_sum(row, listed(pair), &largest, &sum);
    both[0] = p_.tail[pair * group_ + q];
    both[1] = log_of_sum(largest, sum);
    kernels_.log_sum(both, 2, &largest, &sum);
    p_.tail[pair * group_ + q] = log_of_sum(largest, sum);
  }
}

void rerank(const skv_rerank_params& p, Execution& execution) {
  const Rerank work(p, execution, nullptr);
  execution.pool.parallel_for(work.pairs() * work.units(), [&](std::int64_t i, int thread) {
    work.score(i / work.units(), i % work.units(), thread);
  });
  execution.pool.parallel_for(work.pairs(), [&](std::int64_t pair, int thread) { work.choose(pair, thread); });
}

}  // namespace skv::cpu
