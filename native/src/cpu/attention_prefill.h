// Attention of a tile of consecutive tokens; included by one file an instruction set.
#pragma once

#include <limits>

#include "cpu/attention_kernels.h"
#include "cpu/attention_product.h"
#include "cpu/vector.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kPrefillTiles = PrefillTile::kColumns / kProductColumns;
static_assert(PrefillTile::kColumns % kProductColumns == 0 && PrefillTile::kKeys % kProductRows == 0);
static_assert(kDimMultiple % kProductRows == 0);

// Everything is transposed, a query a column: the keys and values then serve as they lie, one element at a time,
// and the softmax needs nothing across lanes.
struct PrefillScratch {
  float* queries;  // [tiles][dim][kProductColumns]
  float* sums;     // [tiles][padded_dim(dim)][kProductColumns]
  float* weights;  // [kKeys][kProductColumns]
  float* keys;     // [kKeys][padded_dim(dim)], where they cannot be used in place
  float* values;
  float* largest;  // [kColumns]
  float* sum;      // [kColumns]
  float* factor;   // [kProductColumns]
};

std::uint64_t prefill_scratch_bytes(int dim) {
  const std::uint64_t width = static_cast<std::uint64_t>(padded_dim(dim));
  return 2 * Workspace::bytes_of<float>(width * PrefillTile::kColumns) +
         Workspace::bytes_of<float>(PrefillTile::kKeys * kProductColumns) +
         2 * Workspace::bytes_of<float>(width * PrefillTile::kKeys) +
         2 * Workspace::bytes_of<float>(PrefillTile::kColumns) + Workspace::bytes_of<float>(kProductColumns);
}

PrefillScratch prefill_scratch(void* memory, int dim) {
  Workspace workspace(memory, prefill_scratch_bytes(dim));
  const std::uint64_t width = static_cast<std::uint64_t>(padded_dim(dim));
  PrefillScratch s{};
  s.queries = workspace.take<float>(width * PrefillTile::kColumns);
  s.sums = workspace.take<float>(width * PrefillTile::kColumns);
  s.weights = workspace.take<float>(PrefillTile::kKeys * kProductColumns);
  s.keys = workspace.take<float>(width * PrefillTile::kKeys);
  s.values = workspace.take<float>(width * PrefillTile::kKeys);
  s.largest = workspace.take<float>(PrefillTile::kColumns);
  s.sum = workspace.take<float>(PrefillTile::kColumns);
  s.factor = workspace.take<float>(kProductColumns);
  return s;
}

// Rows [count][dim] as floats [kKeys][padded_dim(dim)], zero behind them.
void widen_rows(std::int32_t type, const void* rows, std::int64_t first, std::int64_t count, int dim, float* to) {
  const std::int64_t width = padded_dim(dim);
  with_rows(type, rows, [&](const auto* typed) {
    for (std::int64_t t = 0; t < count; ++t) {
      widen_all(typed + (first + t) * dim, dim, to + t * width);
      for (std::int64_t d = dim; d < width; ++d) {
        to[t * width + d] = 0;
      }
    }
  });
  for (std::int64_t i = count * width; i < PrefillTile::kKeys * width; ++i) {
    to[i] = 0;
  }
}

// weights [kKeys][kProductColumns]: scores in, e^(score - largest) out.
inline void soften_columns(float* weights, float* largest_so_far, float* sum, float* factor, bool masked,
                           std::int64_t first_key, const std::int32_t* last_key) {
  for (int c = 0; c < kProductColumns; c += kLanes) {
    const Vector before = load(largest_so_far + c);
    Vector now = before;
    if (masked) {
      IntVector last;
      std::memcpy(&last, last_key + c, sizeof(last));
      for (std::int64_t t = 0; t < PrefillTile::kKeys; ++t) {
        float* const row = weights + t * kProductColumns + c;
        const IntVector key = IntVector{} + static_cast<std::int32_t>(first_key + t);
        const Vector score = key <= last ? load(row) : broadcast(-std::numeric_limits<float>::infinity());
        store(row, score);
        now = largest(score, now);
      }
    } else {
      for (std::int64_t t = 0; t < PrefillTile::kKeys; ++t) {
        now = largest(load(weights + t * kProductColumns + c), now);
      }
    }
    const Vector scale = exponential(before - now);
    Vector total = load(sum + c) * scale;
    for (std::int64_t t = 0; t < PrefillTile::kKeys; ++t) {
      float* const row = weights + t * kProductColumns + c;
      const Vector weight = exponential(load(row) - now);
      store(row, weight);
      total += weight;
    }
    store(largest_so_far + c, now);
    store(sum + c, total);
    store(factor + c, scale);
  }
}

void prefill(const PrefillTile& p) {
  const PrefillScratch s = prefill_scratch(p.scratch, p.dim);
  const std::int64_t width = padded_dim(p.dim), dim = p.dim;
  // Rows of the sums that are computed: what a product does at once.
  const std::int64_t sum_rows = (dim + kProductRows - 1) / kProductRows * kProductRows;
  for (std::int64_t column = 0; column < PrefillTile::kColumns; ++column) {
    const std::int64_t tile = column / kProductColumns, lane = column % kProductColumns;
    for (std::int64_t d = 0; d < dim; ++d) {
      s.queries[(tile * dim + d) * kProductColumns + lane] = p.queries[column * width + d];
    }
    s.largest[column] = -std::numeric_limits<float>::infinity();
    s.sum[column] = 0;
  }
  for (std::int64_t i = 0; i < width * PrefillTile::kColumns; ++i) {
    s.sums[i] = 0;
  }
  for (std::int64_t first = 0; first < p.key_count; first += PrefillTile::kKeys) {
    const std::int64_t count = p.key_count - first < PrefillTile::kKeys ? p.key_count - first : PrefillTile::kKeys;
    const bool in_place = p.storage_type == SKV_F32 && count == PrefillTile::kKeys && sum_rows == dim;
    const float* keys = static_cast<const float*>(p.keys) + first * dim;
    const float* values = static_cast<const float*>(p.values) + first * dim;
    if (!in_place) {
      widen_rows(p.storage_type, p.keys, first, count, p.dim, s.keys);
      widen_rows(p.storage_type, p.values, first, count, p.dim, s.values);
      keys = s.keys;
      values = s.values;
    }
    const std::int64_t stride = in_place ? dim : width;
    const bool masked = first + PrefillTile::kKeys > p.unmasked_keys;
    for (std::int64_t tile = 0; tile < kPrefillTiles; ++tile) {
      const std::int64_t column = tile * kProductColumns;
      for (std::int64_t t = 0; t < PrefillTile::kKeys; t += kProductRows) {
        product_tile<false>(keys + t * stride, stride, 1, s.queries + column * dim, dim,
                            s.weights + t * kProductColumns, kProductColumns, nullptr);
      }
      soften_columns(s.weights, s.largest + column, s.sum + column, s.factor, masked, first, p.last_key + column);
      for (std::int64_t d = 0; d < sum_rows; d += kProductRows) {
        product_tile<true>(values + d, 1, stride, s.weights, PrefillTile::kKeys,
                           s.sums + column * width + d * kProductColumns, kProductColumns, s.factor);
      }
    }
  }
  for (std::int64_t column = 0; column < PrefillTile::kColumns; ++column) {
    const std::int64_t tile = column / kProductColumns, lane = column % kProductColumns;
    const float inverse = 1.0F / s.sum[column];
    for (std::int64_t d = 0; d < dim; ++d) {
      p.output[column * width + d] = s.sums[(tile * width + d) * kProductColumns + lane] * inverse;
    }
  }
}

}  // namespace
}  // namespace skv::cpu
