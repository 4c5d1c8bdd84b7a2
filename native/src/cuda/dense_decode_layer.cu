#include "cuda/decode.h"

namespace skv::cuda {
namespace {

skv_dense_attention_params attention_of(const skv_dense_decode_layer_params& p, const float* queries) {
  skv_dense_attention_params a = {};
  a.struct_size = sizeof(a);
  a.query_type = SKV_F32;
  a.output_type = p.input_type;
  a.geometry = p.geometry;
  a.batch = p.batch;
  a.queries = queries;
  a.layers = p.layers;
  a.states = p.states;
  a.max_length = p.max_length;
  a.output = p.output;
  return a;
}

std::uint64_t query_bytes(const skv_dense_decode_layer_params& p) {
  return Workspace::align(static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.query_heads) *
                          static_cast<std::uint64_t>(p.geometry.head_dim) * sizeof(float));
}

}  // namespace

std::uint64_t dense_decode_layer_workspace(const skv_dense_decode_layer_params& p, const DeviceTraits& traits) {
  return query_bytes(p) + dense_attention_workspace(attention_of(p, nullptr), traits);
}

void dense_decode_layer(const skv_dense_decode_layer_params& p, Launch& launch) {
  check_attention_geometry(p.geometry, p.input_type, "dense_decode_layer");
  launch.workspace.require(dense_decode_layer_workspace(p, launch.traits), "dense_decode_layer");
  Workspace workspace = launch.workspace;
  NewTokens tokens;
  tokens.input_type = p.input_type;
  tokens.geometry = p.geometry;
  tokens.batch = p.batch;
  tokens.queries = p.queries;
  tokens.keys = p.keys;
  tokens.values = p.values;
  tokens.query_stride = p.query_stride;
  tokens.key_stride = p.key_stride;
  tokens.value_stride = p.value_stride;
  tokens.dense = p.layers;
  tokens.states = p.states;
  tokens.rope = p.rope;
  tokens.rotated_queries = workspace.take<float>(query_bytes(p) / sizeof(float));
  launch_new_tokens(tokens, launch.stream);
  Launch rest = launch.on(launch.stream, workspace);
  dense_attention(attention_of(p, tokens.rotated_queries), rest);
}

}  // namespace skv::cuda
