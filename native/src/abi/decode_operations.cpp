// Checks of the operations of a decode step and of prefill attention.
#include <algorithm>

#include "abi/check.h"
#include "abi/context.h"

namespace skv::abi {
namespace {

void check_lists(const Check& check, const skv_geometry& geometry, std::int32_t batch, std::int32_t select) {
  check.shadow_geometry(geometry);
  check.batch(batch);
  check.select("select", select);
}

void check_slots(const Check& check, const skv_geometry& geometry, std::int32_t select) {
  if (geometry.slots != 0 && geometry.slots < select) {
    check.fail(SKV_INVALID_ARGUMENT, "slots is " + std::to_string(geometry.slots) +
                                         ", must be 0 or at least select, which is " + std::to_string(select));
  }
}

}  // namespace

void check_landmark_topk(const skv_landmark_topk_params* p, bool pointers) {
  const Check check = begin("skv_landmark_topk", p, pointers);
  check.type("query_type", p->query_type);
  check_lists(check, p->geometry, p->batch, p->select);
  check.finite("radius_weight", p->radius_weight);
  check.range("max_chunks", p->max_chunks, 0, INT32_MAX);
  check.pointer("queries", p->queries);
  check.pointer("layers", p->layers);
  check.pointer("states", p->states);
  check.pointer("selected", p->selected);
  check.pointer("selected_count", p->selected_count);
}

void check_rerank(const skv_rerank_params* p, bool pointers) {
  const Check check = begin("skv_rerank", p, pointers);
  check.type("query_type", p->query_type);
  check_lists(check, p->geometry, p->batch, p->select);
  check.limit("shortlist_stride", p->shortlist_stride, 1, SKV_MAX_SELECT);
  check.range("select", p->select, 1, p->shortlist_stride);
  check.rope(p->rope, p->geometry.head_dim, 0, 0);
  check.pointer("queries", p->queries);
  check.pointer("layers", p->layers);
  check.pointer("states", p->states);
  check.pointer("shortlist", p->shortlist);
  check.pointer("shortlist_count", p->shortlist_count);
  check.pointer("selected", p->selected);
  check.pointer("selected_count", p->selected_count);
  if (p->dropped) {
    check.pointer("dropped_values", p->dropped_values);
  }
}

void check_cache_plan(const skv_cache_plan_params* p, bool pointers) {
  const Check check = begin("skv_cache_plan", p, pointers);
  check_lists(check, p->geometry, p->batch, p->select);
  check_slots(check, p->geometry, p->select);
  check.pointer("layers", p->layers);
  check.pointer("states", p->states);
  check.pointer("selected", p->selected);
  check.pointer("selected_count", p->selected_count);
  check.pointer("selected_slot", p->selected_slot);
  check.pointer("fetch_chunk", p->fetch_chunk);
  check.pointer("fetch_slot", p->fetch_slot);
  check.pointer("fetch_count", p->fetch_count);
}

void check_value_gather(const skv_value_gather_params* p, bool pointers) {
  const Check check = begin("skv_value_gather", p, pointers);
  check_lists(check, p->geometry, p->batch, p->select);
  check.at_least("blocks", p->blocks, 0);
  check.pointer("layers", p->layers);
  check.pointer("fetch_chunk", p->fetch_chunk);
  check.pointer("fetch_slot", p->fetch_slot);
  check.pointer("fetch_count", p->fetch_count);
}

void check_sparse_attention(const skv_sparse_attention_params* p, bool pointers) {
  const Check check = begin("skv_sparse_attention", p, pointers);
  check.type("query_type", p->query_type);
  check.type("output_type", p->output_type);
  check_lists(check, p->geometry, p->batch, p->select);
  check.rope(p->rope, p->geometry.head_dim, 0, 0);
  check.pointer("queries", p->queries);
  check.pointer("layers", p->layers);
  check.pointer("states", p->states);
  check.pointer("selected", p->selected);
  check.pointer("selected_slot", p->selected_slot);
  check.pointer("selected_count", p->selected_count);
  if (p->dropped) {
    check.pointer("dropped_values", p->dropped_values);
  }
  check.pointer("output", p->output);
}

void check_dense_attention(const skv_dense_attention_params* p, bool pointers) {
  const Check check = begin("skv_dense_attention", p, pointers);
  check.type("query_type", p->query_type);
  check.type("output_type", p->output_type);
  check.dense_geometry(p->geometry);
  check.batch(p->batch);
  check.at_least("max_length", p->max_length, 0);
  check.elements("the cache", {p->geometry.key_value_heads, p->max_length, p->geometry.head_dim});
  check.pointer("queries", p->queries);
  check.pointer("layers", p->layers);
  check.pointer("states", p->states);
  check.pointer("output", p->output);
}

void check_prefill_attention(const skv_prefill_attention_params* p, bool pointers) {
  const Check check = begin("skv_prefill_attention", p, pointers);
  check.type("query_type", p->query_type);
  check.type("output_type", p->output_type);
  check.dense_geometry(p->geometry);
  check.at_least("count", p->count, 0);
  check.range("first_position", p->first_position, 0, INT64_MAX - p->count);
  const std::int64_t width = static_cast<std::int64_t>(p->geometry.query_heads) * p->geometry.head_dim;
  check.stride("query_stride", p->query_stride, width);
  check.elements("queries", {p->count, std::max(p->query_stride, width)});
  check.range("capacity", p->capacity, p->first_position + p->count, INT64_MAX);
  check.elements("the cache", {p->geometry.key_value_heads, p->capacity, p->geometry.head_dim});
  if (p->count > 0) {
    check.pointer("queries", p->queries);
    check.pointer("keys", p->keys);
    check.pointer("values", p->values);
    check.pointer("output", p->output);
  }
}

void check_decode_layer(const skv_decode_layer_params* p, bool pointers) {
  const Check check = begin("skv_decode_layer", p, pointers);
  check.type("input_type", p->input_type);
  check_lists(check, p->geometry, p->batch, p->select);
  check_slots(check, p->geometry, p->select);
  const std::int64_t head_dim = p->geometry.head_dim;
  check.stride("query_stride", p->query_stride, p->geometry.query_heads * head_dim);
  check.stride("key_stride", p->key_stride, p->geometry.key_value_heads * head_dim);
  check.stride("value_stride", p->value_stride, p->geometry.key_value_heads * head_dim);
  check.elements("queries", {p->batch, std::max({p->query_stride, p->key_stride, p->value_stride, std::int64_t{1}})});
  check.rope(p->rope, p->geometry.head_dim, 0, 0);
  check.finite("radius_weight", p->radius_weight);
  if (p->shortlist != 0) {
    check.limit("shortlist", p->shortlist, 1, SKV_MAX_SELECT);
    check.range("shortlist", p->shortlist, p->select + std::int64_t{1}, SKV_MAX_SELECT);
  }
  check.range("max_chunks", p->max_chunks, 0, INT32_MAX);
  check.at_least("groups", p->groups, 0);
  check.pointer("queries", p->queries);
  check.pointer("keys", p->keys);
  check.pointer("values", p->values);
  check.pointer("layers", p->layers);
  check.pointer("states", p->states);
  check.pointer("output", p->output);
}

void check_dense_decode_layer(const skv_dense_decode_layer_params* p, bool pointers) {
  const Check check = begin("skv_dense_decode_layer", p, pointers);
  check.type("input_type", p->input_type);
  check.dense_geometry(p->geometry);
  check.batch(p->batch);
  const std::int64_t head_dim = p->geometry.head_dim;
  check.stride("query_stride", p->query_stride, p->geometry.query_heads * head_dim);
  check.stride("key_stride", p->key_stride, p->geometry.key_value_heads * head_dim);
  check.stride("value_stride", p->value_stride, p->geometry.key_value_heads * head_dim);
  check.elements("queries", {p->batch, std::max({p->query_stride, p->key_stride, p->value_stride, std::int64_t{1}})});
  check.rope(p->rope, p->geometry.head_dim, 0, 0);
  check.at_least("max_length", p->max_length, 0);
  check.elements("the cache", {p->geometry.key_value_heads, p->max_length, head_dim});
  check.pointer("queries", p->queries);
  check.pointer("keys", p->keys);
  check.pointer("values", p->values);
  check.pointer("layers", p->layers);
  check.pointer("states", p->states);
  check.pointer("output", p->output);
}

}  // namespace skv::abi
