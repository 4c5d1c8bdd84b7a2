#include <string>

#include "cpu/attention.h"
#include "cpu/new_tokens.h"

namespace skv::cpu {
namespace {

skv_dense_attention_params attention_of(const skv_dense_decode_layer_params& p, const float* queries) {
  skv_dense_attention_params attention{};
  attention.struct_size = sizeof(attention);
  attention.query_type = SKV_F32;
  attention.output_type = p.input_type;
  attention.geometry = p.geometry;
  attention.batch = p.batch;
  attention.queries = queries;
  attention.layers = p.layers;
  attention.states = p.states;
  attention.max_length = p.max_length;
  attention.output = p.output;
  return attention;
}

std::uint64_t query_count(const skv_dense_decode_layer_params& p) {
  return static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.query_heads) *
         static_cast<std::uint64_t>(p.geometry.head_dim);
}

}  // namespace

std::uint64_t dense_decode_layer_workspace(const skv_dense_decode_layer_params& p, const ExecutionTraits& traits) {
  return Workspace::bytes_of<float>(query_count(p)) + dense_attention_workspace(attention_of(p, nullptr), traits);
}

void dense_decode_layer(const skv_dense_decode_layer_params& p, Execution& execution) {
  check_attention_geometry(p.geometry, p.input_type, "dense_decode_layer");
  execution.workspace.require(dense_decode_layer_workspace(p, execution.traits()), "dense_decode_layer");
  for (std::int32_t session = 0; session < p.batch; ++session) {
    if (p.states[session].length > p.layers[session].capacity) {
      throw Error(SKV_INVALID_ARGUMENT, "dense_decode_layer: session " + std::to_string(session) + " has " +
                                            std::to_string(p.states[session].length) + " tokens, its capacity is " +
                                            std::to_string(p.layers[session].capacity));
    }
  }
  float* const queries = execution.workspace.take<float>(query_count(p));
  const NewTokens tokens = {p.input_type,   p.geometry,   p.batch,        p.queries, p.keys, p.values,
                            p.query_stride, p.key_stride, p.value_stride, p.states,  p.rope, queries};
  add_new_tokens(
      tokens, execution,
      [](const void* context, std::int64_t session) -> TokenPlace {
        const auto& step = *static_cast<const skv_dense_decode_layer_params*>(context);
        const skv_dense_layer& layer = step.layers[session];
        return {layer.keys, layer.values, layer.capacity, step.states[session].length - 1};
      },
      &p);
  dense_attention(attention_of(p, queries), execution);
}

}  // namespace skv::cpu
