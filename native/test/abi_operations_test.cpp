// The C ABI on a CPU context: every operation refuses what it must, with a line that names the function, the argument
// and the limit.
#include "abi_fixture.h"

namespace {

using namespace abi;

void test_rope() {
  auto p = sized<skv_rope_params>();
  p.input = p.output = memory;
  p.count = 5;
  p.heads = 2;
  p.head_dim = 32;
  p.first_position = 100;
  p.rope = rope();
  const Entry<skv_rope_params> rotate{skv_rope_rotate, "skv_rope_rotate", p};
  rotate.accepts();
  rotate.REFUSES(type = 9, kInvalid, "type is 9");
  rotate.REFUSES(type = SKV_I8, kUnsupported, "type is 4 (I8)");
  rotate.REFUSES(input = nullptr, kInvalid, "input is null");
  rotate.REFUSES(output = nullptr, kInvalid, "output is null");
  rotate.REFUSES(count = -1, kInvalid, "count is -1");
  rotate.REFUSES(heads = 0, kInvalid, "heads is 0");
  rotate.REFUSES(head_dim = 0, kInvalid, "head_dim is 0, must be 2..256");
  rotate.REFUSES(head_dim = 258, kUnsupported, "head_dim is 258, must be 2..256");
  rotate.REFUSES(head_dim = 33, kUnsupported, "must be even");
  rotate.REFUSES(input_stride = 63, kInvalid, "input_stride is 63, must be 0 or at least 64");
  rotate.REFUSES(output_stride = -64, kInvalid, "output_stride is -64");
  rotate.REFUSES(input_head_stride = 31, kInvalid, "input_head_stride is 31, must be 0 or at least 32");
  rotate.REFUSES(input_head_stride = INT64_MAX / 4, kInvalid, "do not fit into 64 bits");
  rotate.REFUSES(first_position = -1, kInvalid, "first_position is -1");
  rotate.REFUSES(first_position = INT64_MAX, kInvalid, "first_position is");
  rotate.REFUSES(first_position = 252, kInvalid, "positions 252..256 exceed the rotary tables, which cover 256");
  rotate.REFUSES(count = INT64_MAX / 64, kInvalid, "do not fit into 64 bits");
  rotate.REFUSES(rope.rotary_dim = 34, kInvalid, "rope.rotary_dim is 34");
  rotate.REFUSES(rope.rotary_dim = 3, kInvalid, "rope.rotary_dim is 3");
  rotate.REFUSES(rope.coarse = nullptr, kInvalid, "rope.coarse is null");
  rotate.REFUSES(rope.fine = nullptr, kInvalid, "rope.fine is null");
  rotate.REFUSES(rope.coarse_rows = 0, kInvalid, "rope.coarse_rows is 0");
  rotate.REFUSES(rope.fine_rows = 48, kInvalid, "rope.fine_rows is 48, must be a power of two");
  rotate.REFUSES(rope.pairing = 2, kInvalid, "rope.pairing is 2");
  rotate.REFUSES(rope.scale = 0, kInvalid, "rope.scale is 0");
  static const std::int64_t beyond[5] = {0, 1, 256, 2, 3};
  rotate.REFUSES(positions = beyond, kInvalid, "position 256 is outside the rotary tables");
}

void test_building() {
  auto s = sized<skv_store_tokens_params>();
  s.key_value_heads = 2;
  s.head_dim = 32;
  s.count = 3;
  s.keys = s.values = memory;
  s.rotated_keys = memory + 65536;
  s.raw_keys = memory + 131072;
  s.stored_values = memory + 196608;
  s.capacity = 16;
  s.rope = rope();
  const Entry<skv_store_tokens_params> store{skv_store_tokens, "skv_store_tokens", s};
  store.accepts();
  store.REFUSES(storage_type = SKV_F8_E4M3, kUnsupported, "storage_type is 3 (F8_E4M3)");
  store.REFUSES(key_value_heads = 33, kUnsupported, "key_value_heads is 33, must be 1..32");
  store.REFUSES(count = 17, kInvalid, "count is 17, must be 0..16");
  store.REFUSES(capacity = 0, kInvalid, "capacity is 0");
  store.REFUSES(capacity = INT64_MAX / 128, kInvalid, "do not fit into 64 bits");
  store.REFUSES(keys = nullptr, kInvalid, "keys is null");
  store.REFUSES(values = nullptr, kInvalid, "values is null");
  store.REFUSES(key_stride = 1, kInvalid, "key_stride is 1");
  store.REFUSES(first_position = 255, kInvalid, "exceed the rotary tables");

  auto f = sized<skv_low_rank_factor_params>();
  f.keys = memory;
  f.tokens = 40;
  f.key_value_heads = 2;
  f.head_dim = 32;
  f.rank = 16;
  f.coefficients = memory + 65536;
  f.basis = memory + 131072;
  const Entry<skv_low_rank_factor_params> factor{skv_low_rank_factor, "skv_low_rank_factor", f};
  factor.accepts();
  factor.REFUSES(rank = 0, kInvalid, "rank is 0");
  factor.REFUSES(rank = 300, kUnsupported, "rank is 300, must be 1..256");
  factor.REFUSES(rank = 65, kInvalid, "rank is 65, must be 1..64");
  factor.REFUSES(rank = 8, kUnsupported, "stored_rank is 8, must be 16..256");
  factor.REFUSES(stored_rank = 15, kInvalid, "stored_rank is 15");
  factor.REFUSES(stored_rank = 257, kUnsupported, "stored_rank is 257");
  factor.REFUSES(tokens = 0, kInvalid, "tokens is 0");
  factor.REFUSES(tokens = INT64_MAX / 8, kInvalid, "do not fit into 64 bits");
  factor.REFUSES(iterations = -1, kInvalid, "iterations is -1");
  factor.REFUSES(oversampling = -1, kInvalid, "oversampling is -1");
  factor.REFUSES(basis = nullptr, kInvalid, "basis is null");
  factor.REFUSES(coefficient_type = SKV_BF16, kUnsupported,
                 "coefficient_type is 1 (BF16), must be type, which is 0 (F32), or 4 (I8)");
  factor.REFUSES(coefficient_type = 17, kInvalid, "coefficient_type is 17");
  factor.REFUSES(coefficient_type = SKV_I8, kInvalid, "coefficient_scales is null");
  f.coefficient_type = SKV_I8;
  f.coefficient_scales = reinterpret_cast<float*>(memory + 196608);
  Entry<skv_low_rank_factor_params>{skv_low_rank_factor, "skv_low_rank_factor", f}.accepts();

  auto j = sized<skv_low_rank_project_params>();
  j.keys = memory;
  j.count = 8;
  j.key_value_heads = 2;
  j.head_dim = 32;
  j.rank = 16;
  j.basis = memory + 131072;
  j.coefficients = memory + 65536;
  const Entry<skv_low_rank_project_params> project{skv_low_rank_project, "skv_low_rank_project", j};
  project.accepts();
  project.REFUSES(rank = 15, kUnsupported, "rank is 15, must be 16..256");
  project.REFUSES(count = -8, kInvalid, "count is -8");
  project.REFUSES(keys = nullptr, kInvalid, "keys is null");
  project.REFUSES(coefficient_type = SKV_F16, kUnsupported, "coefficient_type is 2 (F16), must be type");
  project.REFUSES(coefficient_type = -1, kInvalid, "coefficient_type is -1");
  project.REFUSES(coefficient_type = SKV_I8, kInvalid, "coefficient_scales is null");
  j.coefficient_type = SKV_I8;
  j.coefficient_scales = reinterpret_cast<float*>(memory + 196608);
  Entry<skv_low_rank_project_params>{skv_low_rank_project, "skv_low_rank_project", j}.accepts();
  j.coefficient_scales = nullptr;
  j.count = 0;
  Entry<skv_low_rank_project_params>{skv_low_rank_project, "skv_low_rank_project", j}.accepts();

  auto r = sized<skv_rebuild_keys_params>();
  r.coefficients = memory;
  r.basis = memory + 131072;
  r.key_value_heads = 2;
  r.head_dim = 32;
  r.rank = 16;
  r.count = 4;
  r.rotated_keys = memory + 65536;
  r.capacity = 8;
  r.rope = rope();
  const Entry<skv_rebuild_keys_params> rebuild{skv_rebuild_keys, "skv_rebuild_keys", r};
  rebuild.accepts();
  rebuild.REFUSES(count = 9, kInvalid, "count is 9, must be 0..8");
  rebuild.REFUSES(rank = 1000, kUnsupported, "rank is 1000");
  rebuild.REFUSES(rotated_keys = nullptr, kInvalid, "rotated_keys is null");
  rebuild.REFUSES(coefficient_type = SKV_F8_E4M3, kUnsupported, "coefficient_type is 3 (F8_E4M3), must be type");
  rebuild.REFUSES(coefficient_type = 17, kInvalid, "coefficient_type is 17");
  r.coefficient_type = SKV_I8;
  Entry<skv_rebuild_keys_params>{skv_rebuild_keys, "skv_rebuild_keys", r}.accepts();

  auto l = sized<skv_landmark_build_params>();
  l.key_value_heads = 2;
  l.head_dim = 32;
  l.chunk = 8;
  l.rotated_keys = memory;
  l.capacity = 32;
  l.first_chunk = 1;
  l.chunks = 3;
  l.landmarks = memory + 65536;
  l.radius = reinterpret_cast<float*>(memory + 131072);
  l.chunk_capacity = 4;
  const Entry<skv_landmark_build_params> landmarks{skv_landmark_build, "skv_landmark_build", l};
  landmarks.accepts();
  landmarks.REFUSES(chunk = 4, kUnsupported, "chunk is 4, must be 8 or 16");
  landmarks.REFUSES(chunk = 0, kInvalid, "chunk is 0");
  landmarks.REFUSES(chunks = 5, kInvalid, "chunks is 5, must be 0..4");
  landmarks.REFUSES(first_chunk = 2, kInvalid, "first_chunk is 2, must be 0..1");
  landmarks.REFUSES(capacity = 23, kInvalid, "a ring of capacity 23 holds 2");
  landmarks.REFUSES(landmark_type = SKV_BF16, kUnsupported, "landmark_type is 1 (BF16)");
  landmarks.REFUSES(landmark_type = SKV_I8, kInvalid, "landmark_scales is null");

  auto o = sized<skv_outlier_select_params>();
  o.key_value_heads = 2;
  o.cosine = reinterpret_cast<float*>(memory);
  o.chunks = 10;
  o.chunk_capacity = 12;
  o.count = 3;
  o.ids = reinterpret_cast<std::int32_t*>(memory + 65536);
  const Entry<skv_outlier_select_params> outliers{skv_outlier_select, "skv_outlier_select", o};
  outliers.accepts();
  outliers.REFUSES(count = 11, kInvalid, "count is 11, must be 0..10");
  outliers.REFUSES(chunks = 13, kInvalid, "chunks is 13, must be 0..12");
  outliers.REFUSES(ids = nullptr, kInvalid, "ids is null");

  auto g = sized<skv_chunk_gather_params>();
  g.key_value_heads = 2;
  g.head_dim = 32;
  g.chunk = 8;
  g.source = memory;
  g.capacity = 32;
  static const std::int32_t ids[4] = {0, 1, 2, 3}, bad_ids[4] = {0, 1, -1, 3};
  g.ids = ids;
  g.count = 2;
  g.target = memory + 65536;
  g.target_capacity = 5;
  g.target_first = 1;
  const Entry<skv_chunk_gather_params> gather{skv_chunk_gather, "skv_chunk_gather", g};
  gather.accepts();
  gather.REFUSES(target_first = 4, kInvalid, "target_first is 4, must be 0..3");
  gather.REFUSES(target_capacity = 1, kInvalid, "target_capacity is 1");
  gather.REFUSES(ids = bad_ids, kInvalid, "ids holds -1");

  auto v = sized<skv_value_store_params>();
  v.key_value_heads = 2;
  v.head_dim = 32;
  v.chunk = 8;
  v.source = memory;
  v.capacity = 32;
  v.chunks = 2;
  v.values = memory + 65536;
  v.chunk_capacity = 4;
  const Entry<skv_value_store_params> values{skv_value_store, "skv_value_store", v};
  values.accepts();
  values.REFUSES(value_type = SKV_I8, kUnsupported, "value_type is 4 (I8)");
  values.REFUSES(value_type = SKV_F8_E4M3, kInvalid, "value_scales is null");
  values.REFUSES(value_type = SKV_F12_E4M7, kInvalid, "value_scales is null");
  values.REFUSES(value_type = SKV_F6_E2M3, kInvalid, "value_scales is null");
  values.REFUSES(value_type = 7, kInvalid, "value_type is 7");
  values.REFUSES(chunks = -1, kInvalid, "chunks is -1");

  auto m = sized<skv_moment_update_params>();
  m.key_value_heads = 2;
  m.head_dim = 32;
  m.chunk = 8;
  m.rotated_keys = memory;
  m.values = memory + 65536;
  m.capacity = 32;
  m.first_chunk = 1;
  m.chunks = 3;
  m.chunk_capacity = 4;
  m.replace = 1;
  m.moments = reinterpret_cast<float*>(memory + 131072);
  const Entry<skv_moment_update_params> moments{skv_moment_update, "skv_moment_update", m};
  moments.accepts();
  moments.REFUSES(storage_type = SKV_F8_E4M3, kUnsupported, "storage_type is 3 (F8_E4M3)");
  moments.REFUSES(key_value_heads = 0, kInvalid, "key_value_heads is 0");
  moments.REFUSES(head_dim = 33, kUnsupported, "must be even");
  moments.REFUSES(chunk = 4, kUnsupported, "chunk is 4, must be 8 or 16");
  moments.REFUSES(chunks = 5, kInvalid, "chunks is 5, must be 0..4");
  moments.REFUSES(first_chunk = 2, kInvalid, "first_chunk is 2, must be 0..1");
  moments.REFUSES(capacity = 23, kInvalid, "a ring of capacity 23 holds 2");
  moments.REFUSES(rotated_keys = nullptr, kInvalid, "rotated_keys is null");
  moments.REFUSES(values = nullptr, kInvalid, "values is null");
  moments.REFUSES(moments = nullptr, kInvalid, "moments is null");

  auto w = sized<skv_value_fit_params>();
  w.key_value_heads = 2;
  w.head_dim = 32;
  w.rank = 16;
  w.coefficients = memory;
  w.values = memory + 65536;
  w.capacity = 32;
  w.first_position = 16;
  w.tokens = 32;
  w.value_basis = memory + 131072;
  const Entry<skv_value_fit_params> fits{skv_value_fit, "skv_value_fit", w};
  fits.accepts();
  fits.REFUSES(storage_type = SKV_I8, kUnsupported, "storage_type is 4 (I8)");
  fits.REFUSES(key_value_heads = 33, kUnsupported, "key_value_heads is 33");
  fits.REFUSES(head_dim = 31, kUnsupported, "must be even");
  fits.REFUSES(rank = 300, kUnsupported, "rank is 300");
  fits.REFUSES(tokens = -1, kInvalid, "tokens is -1");
  fits.REFUSES(tokens = 33, kInvalid, "tokens is 33, must be 0..32");
  fits.REFUSES(first_position = -1, kInvalid, "first_position is -1");
  fits.REFUSES(first_position = INT64_MAX / 64, kInvalid, "do not fit into 64 bits");
  fits.REFUSES(capacity = 0, kInvalid, "capacity is 0");
  fits.REFUSES(coefficients = nullptr, kInvalid, "coefficients is null");
  fits.REFUSES(values = nullptr, kInvalid, "values is null");
  fits.REFUSES(value_basis = nullptr, kInvalid, "value_basis is null");
  fits.REFUSES(coefficient_type = SKV_BF16, kUnsupported, "coefficient_type is 1 (BF16), must be storage_type");
  fits.REFUSES(coefficient_type = 17, kInvalid, "coefficient_type is 17");
  w.coefficient_type = SKV_I8;
  Entry<skv_value_fit_params>{skv_value_fit, "skv_value_fit", w}.accepts();
}

// Without a session: every refusal comes before the backend is asked.
void test_decoding() {
  static skv_shadow_layer layers[1];
  static skv_dense_layer dense_layers[1];
  static skv_session_state states[1];
  auto* const ids = reinterpret_cast<std::int32_t*>(memory);

  auto t = sized<skv_landmark_topk_params>();
  t.geometry = geometry();
  t.batch = 1;
  t.queries = memory;
  t.layers = layers;
  t.states = states;
  t.select = 4;
  t.max_chunks = 4;
  t.selected = ids;
  t.selected_count = ids + 64;
  const Entry<skv_landmark_topk_params> topk{skv_landmark_topk, "skv_landmark_topk", t};
  topk.REFUSES(select = 0, kInvalid, "select is 0, must be 1..1024");
  topk.REFUSES(select = 1025, kUnsupported, "select is 1025, must be 1..1024");
  topk.REFUSES(batch = 0, kInvalid, "batch is 0, must be 1..1024");
  topk.REFUSES(batch = 1025, kUnsupported, "batch is 1025");
  topk.REFUSES(radius_weight = std::numeric_limits<float>::quiet_NaN(), kInvalid, "radius_weight is nan");
  topk.REFUSES(geometry.query_heads = 5, kInvalid, "query_heads is 5, must be a multiple of key_value_heads");
  topk.REFUSES(geometry.query_heads = 34, kUnsupported, "query_heads / key_value_heads is 17, must be 1..16");
  topk.REFUSES(geometry.key_value_heads = 0, kInvalid, "key_value_heads is 0");
  topk.REFUSES(geometry.rank = 12, kUnsupported, "rank is 12, must be 16..256");
  topk.REFUSES(geometry.chunk = 12, kUnsupported, "chunk is 12, must be 8 or 16");
  topk.REFUSES(geometry.window = 12, kInvalid, "window is 12, must be a multiple of chunk, which is 8");
  topk.REFUSES(geometry.slots = 5000, kUnsupported, "slots is 5000, must be 1..4096");
  topk.REFUSES(geometry.slots = -1, kInvalid, "slots is -1");
  topk.REFUSES(geometry.value_type = SKV_F16, kUnsupported, "value_type is 2 (F16)");
  topk.REFUSES(geometry.landmark_type = SKV_F6_E2M3, kUnsupported, "landmark_type is 6 (F6_E2M3)");
  topk.REFUSES(geometry.landmark_type = 17, kInvalid, "landmark_type is 17");
  topk.REFUSES(geometry.coefficient_type = SKV_F12_E4M7, kUnsupported, "coefficient_type is 5 (F12_E4M7)");
  topk.REFUSES(geometry.coefficient_type = 17, kInvalid, "coefficient_type is 17");
  topk.REFUSES(max_chunks = -1, kInvalid, "max_chunks is -1");
  topk.REFUSES(layers = nullptr, kInvalid, "layers is null");
  topk.REFUSES(selected = nullptr, kInvalid, "selected is null");

  auto r = sized<skv_rerank_params>();
  r.geometry = geometry();
  r.batch = 1;
  r.queries = memory;
  r.layers = layers;
  r.states = states;
  r.rope = rope();
  r.shortlist_stride = 8;
  r.shortlist = ids;
  r.shortlist_count = ids;
  r.select = 4;
  r.selected = ids;
  r.selected_count = ids;
  const Entry<skv_rerank_params> rerank{skv_rerank, "skv_rerank", r};
  rerank.REFUSES(select = 9, kInvalid, "select is 9, must be 1..8");
  rerank.REFUSES(shortlist_stride = 2000, kUnsupported, "shortlist_stride is 2000");
  rerank.REFUSES(shortlist = nullptr, kInvalid, "shortlist is null");
  rerank.REFUSES(dropped = reinterpret_cast<float*>(memory), kInvalid, "dropped_values is null");

  auto c = sized<skv_cache_plan_params>();
  c.geometry = geometry();
  c.geometry.slots = 8;
  c.batch = 1;
  c.layers = layers;
  c.states = states;
  c.select = 4;
  c.selected = ids;
  c.selected_count = ids;
  c.selected_slot = c.fetch_chunk = c.fetch_slot = c.fetch_count = ids;
  const Entry<skv_cache_plan_params> plan{skv_cache_plan, "skv_cache_plan", c};
  plan.REFUSES(geometry.slots = 3, kInvalid, "slots is 3, must be 0 or at least select, which is 4");
  plan.REFUSES(fetch_count = nullptr, kInvalid, "fetch_count is null");

  auto v = sized<skv_value_gather_params>();
  v.geometry = geometry();
  v.batch = 1;
  v.layers = layers;
  v.select = 4;
  v.fetch_chunk = v.fetch_slot = v.fetch_count = ids;
  const Entry<skv_value_gather_params> fetch{skv_value_gather, "skv_value_gather", v};
  fetch.REFUSES(blocks = -1, kInvalid, "blocks is -1");
  fetch.REFUSES(fetch_slot = nullptr, kInvalid, "fetch_slot is null");

  auto s = sized<skv_sparse_attention_params>();
  s.geometry = geometry();
  s.batch = 1;
  s.queries = memory;
  s.layers = layers;
  s.states = states;
  s.rope = rope();
  s.select = 4;
  s.selected = s.selected_slot = s.selected_count = ids;
  s.output = memory;
  const Entry<skv_sparse_attention_params> sparse{skv_sparse_attention, "skv_sparse_attention", s};
  sparse.REFUSES(output_type = SKV_I8, kUnsupported, "output_type is 4 (I8)");
  sparse.REFUSES(output = nullptr, kInvalid, "output is null");
  sparse.REFUSES(dropped = reinterpret_cast<float*>(memory), kInvalid, "dropped_values is null");
  sparse.REFUSES(geometry.head_dim = 300, kUnsupported, "head_dim is 300");

  auto d = sized<skv_dense_attention_params>();
  d.geometry = geometry();
  d.batch = 1;
  d.queries = memory;
  d.layers = dense_layers;
  d.states = states;
  d.output = memory;
  const Entry<skv_dense_attention_params> dense{skv_dense_attention, "skv_dense_attention", d};
  dense.REFUSES(max_length = -1, kInvalid, "max_length is -1");
  dense.REFUSES(max_length = INT64_MAX / 64, kInvalid, "do not fit into 64 bits");
  dense.REFUSES(states = nullptr, kInvalid, "states is null");

  auto f = sized<skv_prefill_attention_params>();
  f.geometry = geometry();
  f.queries = f.keys = f.values = memory;
  f.count = 4;
  f.first_position = 3;
  f.capacity = 7;
  f.output = memory;
  const Entry<skv_prefill_attention_params> prefill{skv_prefill_attention, "skv_prefill_attention", f};
  prefill.REFUSES(capacity = 6, kInvalid, "capacity is 6");
  prefill.REFUSES(query_stride = 127, kInvalid, "query_stride is 127, must be 0 or at least 128");
  prefill.REFUSES(keys = nullptr, kInvalid, "keys is null");

  auto y = sized<skv_decode_layer_params>();
  y.geometry = geometry();
  y.batch = 1;
  y.queries = y.keys = y.values = memory;
  y.layers = layers;
  y.states = states;
  y.rope = rope();
  y.select = 4;
  y.output = memory;
  const Entry<skv_decode_layer_params> layer{skv_decode_layer, "skv_decode_layer", y};
  layer.REFUSES(shortlist = 4, kInvalid, "shortlist is 4, must be 5..1024");
  layer.REFUSES(shortlist = 1025, kUnsupported, "shortlist is 1025");
  layer.REFUSES(geometry.slots = 2, kInvalid, "slots is 2");
  layer.REFUSES(key_stride = 63, kInvalid, "key_stride is 63, must be 0 or at least 64");
  layer.REFUSES(groups = -1, kInvalid, "groups is -1");
  layer.REFUSES(values = nullptr, kInvalid, "values is null");

  auto n = sized<skv_dense_decode_layer_params>();
  n.geometry = geometry();
  n.batch = 1;
  n.queries = n.keys = n.values = memory;
  n.layers = dense_layers;
  n.states = states;
  n.rope = rope();
  n.output = memory;
  const Entry<skv_dense_decode_layer_params> dense_layer{skv_dense_decode_layer, "skv_dense_decode_layer", n};
  dense_layer.REFUSES(input_type = 7, kInvalid, "input_type is 7");
  dense_layer.REFUSES(input_type = SKV_F12_E4M7, kUnsupported, "input_type is 5 (F12_E4M7)");
  dense_layer.REFUSES(query_stride = 1, kInvalid, "query_stride is 1");
  dense_layer.REFUSES(output = nullptr, kInvalid, "output is null");
}

void test_layer() {
  auto m = sized<skv_matmul_params>();
  m.input = memory;
  m.weight = memory + 65536;
  m.output = memory + 131072;
  m.rows = 2;
  m.columns = 8;
  m.inner = 16;
  const Entry<skv_matmul_params> matmul{skv_matmul, "skv_matmul", m};
  matmul.accepts();
  matmul.REFUSES(weight_type = SKV_F8_E4M3, kUnsupported, "weight_type is 3 (F8_E4M3)");
  matmul.REFUSES(rows = -1, kInvalid, "rows is -1");
  matmul.REFUSES(columns = 0, kInvalid, "columns is 0");
  matmul.REFUSES(inner = 0, kInvalid, "inner is 0");
  matmul.REFUSES(input_stride = 15, kInvalid, "input_stride is 15");
  matmul.REFUSES(output_stride = 7, kInvalid, "output_stride is 7");
  matmul.REFUSES(columns = INT64_MAX / 32, kInvalid, "do not fit into 64 bits");
  matmul.REFUSES(weight = nullptr, kInvalid, "weight is null");

  auto r = sized<skv_rms_norm_params>();
  r.input = memory;
  r.weight = memory;
  r.output = memory + 65536;
  r.rows = 2;
  r.width = 32;
  const Entry<skv_rms_norm_params> norm{skv_rms_norm, "skv_rms_norm", r};
  norm.accepts();
  norm.REFUSES(width = 0, kInvalid, "width is 0");
  norm.REFUSES(epsilon = -1, kInvalid, "epsilon is -1");
  norm.REFUSES(epsilon = std::numeric_limits<float>::infinity(), kInvalid, "epsilon is inf");
  norm.REFUSES(output_type = SKV_I8, kUnsupported, "output_type");
  norm.REFUSES(weight = nullptr, kInvalid, "weight is null");

  auto s = sized<skv_silu_multiply_params>();
  s.gate = s.up = memory;
  s.output = memory + 65536;
  s.rows = 2;
  s.width = 32;
  const Entry<skv_silu_multiply_params> silu{skv_silu_multiply, "skv_silu_multiply", s};
  silu.accepts();
  silu.REFUSES(stride = 31, kInvalid, "stride is 31");
  silu.REFUSES(up = nullptr, kInvalid, "up is null");

  auto e = sized<skv_embed_params>();
  static const std::int32_t ids[2] = {1, 0};
  e.table = memory;
  e.ids = ids;
  e.output = memory + 65536;
  e.count = 2;
  e.width = 32;
  e.vocabulary = 2;
  const Entry<skv_embed_params> embed{skv_embed, "skv_embed", e};
  embed.accepts();
  embed.REFUSES(vocabulary = 0, kInvalid, "vocabulary is 0");
  embed.REFUSES(ids = nullptr, kInvalid, "ids is null");

  auto a = sized<skv_add_params>();
  a.a = a.b = memory;
  a.output = memory + 65536;
  a.count = 10;
  const Entry<skv_add_params> add{skv_add, "skv_add", a};
  add.accepts();
  add.REFUSES(count = -1, kInvalid, "count is -1");
  add.REFUSES(b = nullptr, kInvalid, "b is null");

  auto c = sized<skv_convert_params>();
  c.input = memory;
  c.output = memory + 65536;
  c.output_type = SKV_BF16;
  c.count = 10;
  const Entry<skv_convert_params> convert{skv_convert, "skv_convert", c};
  convert.accepts();
  convert.REFUSES(output_type = SKV_I8, kUnsupported, "output_type is 4 (I8)");
  convert.REFUSES(count = INT64_MAX, kInvalid, "do not fit into 64 bits");

  auto x = sized<skv_argmax_params>();
  x.input = memory;
  x.rows = 2;
  x.width = 32;
  x.ids = reinterpret_cast<std::int32_t*>(memory + 65536);
  const Entry<skv_argmax_params> argmax{skv_argmax, "skv_argmax", x};
  argmax.accepts();
  argmax.REFUSES(width = 0, kInvalid, "width is 0");
  argmax.REFUSES(ids = nullptr, kInvalid, "ids is null");

  auto f = sized<skv_random_fill_params>();
  f.output = memory;
  f.count = 100;
  f.deviation = 1;
  const Entry<skv_random_fill_params> fill{skv_random_fill, "skv_random_fill", f};
  fill.accepts();
  fill.REFUSES(deviation = std::numeric_limits<float>::infinity(), kInvalid, "deviation is inf");
  fill.REFUSES(output = nullptr, kInvalid, "output is null");
}

// What all operations have in common.
void test_every_operation() {
#define CHECK_OPERATION(method, type, function, number)                                            \
  {                                                                                                \
    type p = {};                                                                                   \
    CHECK_EQUAL(function(nullptr, &p), SKV_INVALID_ARGUMENT);                                      \
    expect_failure(function(context, nullptr), SKV_INVALID_ARGUMENT, #function, "params is null"); \
    p.struct_size = sizeof(type) + 8;                                                              \
    expect_failure(function(context, &p), SKV_INVALID_ARGUMENT, #function, "struct_size is");      \
    std::uint64_t bytes = 0;                                                                       \
    CHECK_EQUAL(skv_workspace_bytes(context, number, &p, &bytes), SKV_INVALID_ARGUMENT);           \
    CHECK_EQUAL(skv_struct_size(#type), sizeof(type));                                             \
  }
  SKV_OPERATIONS(CHECK_OPERATION)
#undef CHECK_OPERATION
  CHECK_EQUAL(skv_struct_size("skv_geometry"), sizeof(skv_geometry));
  CHECK_EQUAL(skv_struct_size("skv_decode_counters"), sizeof(skv_decode_counters));
  CHECK_EQUAL(skv_struct_size("skv_nothing"), 0U);
  CHECK_EQUAL(skv_struct_size(nullptr), 0U);
  auto p = sized<skv_matmul_params>();
  std::uint64_t bytes = 0;
  expect_failure(skv_workspace_bytes(context, 99, &p, &bytes), kInvalid, "skv_workspace_bytes",
                 "no operation number 99");
  expect_failure(skv_workspace_bytes(context, SKV_OP_MATMUL, nullptr, &bytes), kInvalid, "skv_workspace_bytes",
                 "params is null");
}

}  // namespace

int main() {
  char text[512] = {};
  auto p = sized<skv_context_params>();
  p.threads = 2;
  if (skv_context_create(&p, &context, text, sizeof(text)) != SKV_OK) {
    std::fprintf(stderr, "%s\n", text);
    return 1;
  }
  constexpr std::uint64_t kWorkspace = 1 << 20;
  CHECK_EQUAL(skv_reserve_workspace(context, kWorkspace), SKV_OK);
  test_every_operation();
  test_rope();
  test_building();
  test_decoding();
  test_layer();
  CHECK_EQUAL(skv_context_destroy(context), SKV_OK);
  return check::verdict();
}
