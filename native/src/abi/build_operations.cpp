// Checks of the operations that build a cache.
#include <algorithm>

#include "abi/check.h"
#include "abi/context.h"
#include "value_types.h"

namespace skv::abi {
namespace {

void check_positions(const Check& check, std::int64_t first, std::int64_t count) {
  check.at_least("count", count, 0);
  check.range("first_position", first, 0, INT64_MAX - count);
}

// A ring of which chunks [first, first + count) are used, and the arrays they are written to.
void check_chunks(const Check& check, std::int32_t heads, std::int32_t head_dim, std::int32_t chunk,
                  std::int64_t capacity, std::int64_t first, std::int64_t count, std::int64_t chunk_capacity) {
  check.heads("key_value_heads", heads);
  check.head_dim(head_dim);
  check.chunk(chunk);
  check.at_least("capacity", capacity, 1);
  check.elements("the ring", {heads, capacity, head_dim});
  check.at_least("chunk_capacity", chunk_capacity, 0);
  check.elements("the chunks", {heads, chunk_capacity, chunk, head_dim});
  check.range("chunks", count, 0, chunk_capacity);
  check.range("first_chunk", first, 0, chunk_capacity - count);
  if (count > capacity / chunk) {
    check.fail(SKV_INVALID_ARGUMENT, "chunks is " + std::to_string(count) + ", a ring of capacity " +
                                         std::to_string(capacity) + " holds " + std::to_string(capacity / chunk));
  }
}

}  // namespace

void check_rope(const skv_rope_params* p, bool pointers) {
  const Check check = begin("skv_rope_rotate", p, pointers);
  check.type("type", p->type);
  check.at_least("heads", p->heads, 1);
  check.head_dim(p->head_dim);
  check_positions(check, p->first_position, p->count);
  const std::int64_t width = static_cast<std::int64_t>(p->heads) * p->head_dim;
  check.stride("input_head_stride", p->input_head_stride, p->head_dim);
  check.stride("input_stride", p->input_stride, p->input_head_stride ? p->head_dim : width);
  check.stride("output_stride", p->output_stride, width);
  check.elements("input", {p->count, p->input_stride ? p->input_stride : width});
  check.elements("input", {p->heads, p->input_head_stride ? p->input_head_stride : p->head_dim});
  check.elements("output", {p->count, p->output_stride ? p->output_stride : width});
  check.rope(p->rope, p->head_dim, p->first_position, p->positions ? 0 : p->count);
  if (p->count > 0) {
    check.pointer("input", p->input);
    check.pointer("output", p->output);
  }
}

void check_store_tokens(const skv_store_tokens_params* p, bool pointers) {
  const Check check = begin("skv_store_tokens", p, pointers);
  check.type("input_type", p->input_type);
  check.type("storage_type", p->storage_type);
  check.heads("key_value_heads", p->key_value_heads);
  check.head_dim(p->head_dim);
  check_positions(check, p->first_position, p->count);
  const std::int64_t width = static_cast<std::int64_t>(p->key_value_heads) * p->head_dim;
  check.stride("key_stride", p->key_stride, width);
  check.stride("value_stride", p->value_stride, width);
  check.elements("keys", {p->count, p->key_stride ? p->key_stride : width});
  check.elements("values", {p->count, p->value_stride ? p->value_stride : width});
  check.at_least("capacity", p->capacity, 1);
  check.elements("the ring", {p->capacity, width});
  check.range("count", p->count, 0, p->capacity);
  if (p->count > 0 && pointers) {
    if (p->rotated_keys || p->raw_keys) {
      check.pointer("keys", p->keys);
    }
    if (p->stored_values) {
      check.pointer("values", p->values);
    }
  }
  if (p->rotated_keys) {
    check.rope(p->rope, p->head_dim, p->first_position, p->count);
  }
}

void check_low_rank_factor(const skv_low_rank_factor_params* p, bool pointers) {
  const Check check = begin("skv_low_rank_factor", p, pointers);
  check.type("type", p->type);
  check.coefficient_type(p->coefficient_type, p->type, "type");
  check.heads("key_value_heads", p->key_value_heads);
  check.head_dim(p->head_dim);
  const std::int64_t width = static_cast<std::int64_t>(p->key_value_heads) * p->head_dim;
  check.at_least("tokens", p->tokens, 1);
  check.stride("key_stride", p->key_stride, width);
  check.elements("keys", {p->tokens, p->key_stride ? p->key_stride : width});
  check.limit("rank", p->rank, 1, SKV_MAX_RANK);
  check.range("rank", p->rank, 1, width);
  if (p->stored_rank != 0) {
    check.range("stored_rank", p->stored_rank, p->rank, INT32_MAX);
  }
  check.rank("stored_rank", p->stored_rank ? p->stored_rank : p->rank);
  check.elements("coefficients", {p->tokens, p->stored_rank ? p->stored_rank : p->rank});
  check.at_least("oversampling", p->oversampling, 0);
  check.at_least("iterations", p->iterations, 0);
  check.pointer("keys", p->keys);
  check.pointer("coefficients", p->coefficients);
  check.pointer("basis", p->basis);
  if (p->coefficient_type == SKV_I8) {
    check.pointer("coefficient_scales", p->coefficient_scales);
  }
}

void check_low_rank_project(const skv_low_rank_project_params* p, bool pointers) {
  const Check check = begin("skv_low_rank_project", p, pointers);
  check.type("type", p->type);
  check.coefficient_type(p->coefficient_type, p->type, "type");
  check.heads("key_value_heads", p->key_value_heads);
  check.head_dim(p->head_dim);
  check.rank("rank", p->rank);
  const std::int64_t width = static_cast<std::int64_t>(p->key_value_heads) * p->head_dim;
  check.at_least("count", p->count, 0);
  check.stride("key_stride", p->key_stride, width);
  check.elements("keys", {p->count, p->key_stride ? p->key_stride : width});
  check.elements("coefficients", {p->count, p->rank});
  if (p->count > 0) {
    check.pointer("keys", p->keys);
    check.pointer("basis", p->basis);
    check.pointer("coefficients", p->coefficients);
    if (p->coefficient_type == SKV_I8) {
      check.pointer("coefficient_scales", p->coefficient_scales);
    }
  }
}

void check_rebuild_keys(const skv_rebuild_keys_params* p, bool pointers) {
  const Check check = begin("skv_rebuild_keys", p, pointers);
  check.type("type", p->type);
  check.coefficient_type(p->coefficient_type, p->type, "type");
  check.heads("key_value_heads", p->key_value_heads);
  check.head_dim(p->head_dim);
  check.rank("rank", p->rank);
  check_positions(check, p->first_position, p->count);
  check.elements("coefficients", {p->first_position + p->count, p->rank});
  check.at_least("capacity", p->capacity, 1);
  check.elements("the ring", {p->key_value_heads, p->capacity, p->head_dim});
  check.range("count", p->count, 0, p->capacity);
  check.rope(p->rope, p->head_dim, p->first_position, p->count);
  if (p->count > 0) {
    check.pointer("coefficients", p->coefficients);
    check.pointer("basis", p->basis);
    check.pointer("rotated_keys", p->rotated_keys);
  }
}

void check_landmark_build(const skv_landmark_build_params* p, bool pointers) {
  const Check check = begin("skv_landmark_build", p, pointers);
  check.type("storage_type", p->storage_type);
  check.landmark_type(p->landmark_type, p->storage_type);
  check_chunks(check, p->key_value_heads, p->head_dim, p->chunk, p->capacity, p->first_chunk, p->chunks,
               p->chunk_capacity);
  if (p->chunks > 0) {
    check.pointer("rotated_keys", p->rotated_keys);
    check.pointer("landmarks", p->landmarks);
    check.pointer("radius", p->radius);
    if (p->landmark_type == SKV_I8) {
      check.pointer("landmark_scales", p->landmark_scales);
    }
  }
}

void check_outlier_select(const skv_outlier_select_params* p, bool pointers) {
  const Check check = begin("skv_outlier_select", p, pointers);
  check.heads("key_value_heads", p->key_value_heads);
  check.at_least("chunk_capacity", p->chunk_capacity, 0);
  check.elements("cosine", {p->key_value_heads, p->chunk_capacity});
  check.range("chunks", p->chunks, 0, std::min<std::int64_t>(p->chunk_capacity, INT32_MAX));
  check.range("count", p->count, 0, p->chunks);
  if (p->count > 0) {
    check.pointer("cosine", p->cosine);
    check.pointer("ids", p->ids);
  }
}

void check_chunk_gather(const skv_chunk_gather_params* p, bool pointers) {
  const Check check = begin("skv_chunk_gather", p, pointers);
  check.type("type", p->type);
  check.heads("key_value_heads", p->key_value_heads);
  check.head_dim(p->head_dim);
  check.chunk(p->chunk);
  check.at_least("capacity", p->capacity, 1);
  check.elements("the ring", {p->key_value_heads, p->capacity, p->head_dim});
  check.at_least("count", p->count, 0);
  check.range("target_capacity", p->target_capacity, p->count, INT64_MAX);
  check.range("target_first", p->target_first, 0, p->target_capacity - p->count);
  check.elements("target", {p->key_value_heads, p->target_capacity, p->chunk, p->head_dim});
  if (p->count > 0) {
    check.pointer("source", p->source);
    check.pointer("ids", p->ids);
    check.pointer("target", p->target);
  }
}

void check_value_store(const skv_value_store_params* p, bool pointers) {
  const Check check = begin("skv_value_store", p, pointers);
  check.type("storage_type", p->storage_type);
  check.value_type(p->value_type, p->storage_type);
  check_chunks(check, p->key_value_heads, p->head_dim, p->chunk, p->capacity, p->first_chunk, p->chunks,
               p->chunk_capacity);
  if (p->chunks > 0) {
    check.pointer("source", p->source);
    check.pointer("values", p->values);
    if (is_scaled(p->value_type)) {
      check.pointer("value_scales", p->value_scales);
    }
  }
}

void check_moment_update(const skv_moment_update_params* p, bool pointers) {
  const Check check = begin("skv_moment_update", p, pointers);
  check.type("storage_type", p->storage_type);
  check_chunks(check, p->key_value_heads, p->head_dim, p->chunk, p->capacity, p->first_chunk, p->chunks,
               p->chunk_capacity);
  if (p->chunks > 0) {
    check.pointer("rotated_keys", p->rotated_keys);
    check.pointer("values", p->values);
  }
  check.pointer("moments", p->moments);
}

void check_value_fit(const skv_value_fit_params* p, bool pointers) {
  const Check check = begin("skv_value_fit", p, pointers);
  check.type("storage_type", p->storage_type);
  check.coefficient_type(p->coefficient_type, p->storage_type);
  check.heads("key_value_heads", p->key_value_heads);
  check.head_dim(p->head_dim);
  check.rank("rank", p->rank);
  check.at_least("tokens", p->tokens, 0);
  check.range("first_position", p->first_position, 0, INT64_MAX - p->tokens);
  check.elements("coefficients", {p->first_position + p->tokens, p->rank});
  check.at_least("capacity", p->capacity, 1);
  check.elements("the ring", {p->key_value_heads, p->capacity, p->head_dim});
  check.range("tokens", p->tokens, 0, p->capacity);
  if (p->tokens > 0) {
    check.pointer("coefficients", p->coefficients);
    check.pointer("values", p->values);
  }
  check.pointer("value_basis", p->value_basis);
}

}  // namespace skv::abi
