// Times of the CPU's decode path on one layer of an 8B Llama, and of its prefill on the small checkpoint's shape,
// beside what the machine's memory and arithmetic allow. Run by hand: bench_cpu [threads] [tokens] [batch] [instruction
// set].
#include "bench_cpu.h"

#include <cstdio>

namespace {

using namespace bench;

constexpr int kRepeats = 12;

double dense(Runner& runner, ThreadPool& pool, const Machine& machine, std::int64_t tokens, std::int32_t batch) {
  const skv_geometry g = {32, 8, 128, 8, 160, SKV_BF16, SKV_BF16, SKV_BF16, SKV_BF16, 64, 0};
  Buffer<Half> keys(batch * tokens * 8 * 128), values(batch * tokens * 8 * 128);
  fill(pool, keys, 1, 1.0F);
  fill(pool, values, 2, 1.0F);
  Buffer<float> queries(batch * 32 * 128), output(batch * 32 * 128);
  fill(queries, 3, 1.0F);
  std::vector<skv_dense_layer> layers;
  std::vector<skv_session_state> states(static_cast<std::size_t>(batch));
  for (std::int32_t b = 0; b < batch; ++b) {
    layers.push_back({keys.data() + b * tokens * 8 * 128, values.data() + b * tokens * 8 * 128, tokens});
    states[static_cast<std::size_t>(b)].length = tokens;
  }
  skv_dense_attention_params p{};
  p.query_type = p.output_type = SKV_F32;
  p.geometry = g;
  p.batch = batch;
  p.queries = queries.data();
  p.layers = layers.data();
  p.states = states.data();
  p.max_length = tokens;
  p.output = output.data();
  const double seconds = runner.time(kRepeats, p, skv::cpu::dense_attention, skv::cpu::dense_attention_workspace);
  require_finite(output, "dense_attention");
  report("dense attention", seconds, static_cast<double>(batch) * tokens * 8 * 128 * 2 * 2, 0, machine);
  return seconds;
}

double shadow(Runner& runner, ThreadPool& pool, const Machine& machine, std::int64_t tokens, std::int32_t batch) {
  constexpr int kSelect = 256, kOutliers = 48, kChunk = 8, kRank = 160, kWindow = 64;
  const skv_geometry g = {32, 8, 128, kChunk, kRank, SKV_BF16, SKV_BF16, SKV_BF16, SKV_BF16, kWindow, 0};
  const std::int64_t chunks = tokens / kChunk, indexed = chunks - 4;
  Buffer<Half> coefficients(batch * tokens * kRank), basis(batch * 8 * kRank * 128),
      landmarks(batch * 8 * chunks * 128), outlier_keys(batch * 8 * kOutliers * kChunk * 128),
      outlier_values(batch * 8 * kOutliers * kChunk * 128), recent_keys(batch * 8 * kWindow * 128),
      recent_values(batch * 8 * kWindow * 128), values(batch * 8 * tokens * 128);
  Buffer<float> radius(batch * 8 * chunks);
  fill(pool, coefficients, 11, 1.0F);
  fill(pool, basis, 12, 0.08F);
  fill(pool, landmarks, 13, 0.7F);
  fill(pool, outlier_keys, 14, 1.0F);
  fill(pool, outlier_values, 15, 1.0F);
  fill(pool, recent_keys, 16, 1.0F);
  fill(pool, recent_values, 17, 1.0F);
  fill(pool, values, 18, 1.0F);
  std::mt19937_64 random(19);
  for (std::int64_t i = 0; i < radius.count(); ++i) {
    radius[i] = static_cast<float>(random() % 1000) * 1e-3F;
  }
  const Rope rope(128, tokens + 1);
  Buffer<float> queries(batch * 32 * 128), output(batch * 32 * 128), new_keys(batch * 8 * 128),
      new_values(batch * 8 * 128);
  fill(queries, 3, 1.0F);
  fill(new_keys, 4, 1.0F);
  fill(new_values, 5, 1.0F);
  std::vector<skv_shadow_layer> layers;
  std::vector<skv_session_state> states(static_cast<std::size_t>(batch));
  for (std::int32_t b = 0; b < batch; ++b) {
    skv_shadow_layer layer{};
    layer.coefficients = coefficients.data() + b * tokens * kRank;
    layer.basis = basis.data() + b * 8 * kRank * 128;
    layer.landmarks = landmarks.data() + b * 8 * chunks * 128;
    layer.radius = radius.data() + b * 8 * chunks;
    layer.outlier_keys = outlier_keys.data() + b * 8 * kOutliers * kChunk * 128;
    layer.outlier_values = outlier_values.data() + b * 8 * kOutliers * kChunk * 128;
    layer.recent_keys = recent_keys.data() + b * 8 * kWindow * 128;
    layer.recent_values = recent_values.data() + b * 8 * kWindow * 128;
    layer.values = values.data() + b * 8 * tokens * 128;
    layer.chunk_capacity = chunks;
    layer.outlier_capacity = kOutliers;
    layers.push_back(layer);
    states[static_cast<std::size_t>(b)] = {
        indexed * kChunk + 33, indexed * kChunk, static_cast<std::int32_t>(indexed), kOutliers, 1, 0};
  }
  skv_decode_layer_params p{};
  p.input_type = SKV_F32;
  p.geometry = g;
  p.batch = batch;
  p.queries = queries.data();
  p.keys = new_keys.data();
  p.values = new_values.data();
  p.layers = layers.data();
  p.states = states.data();
  p.rope = rope.table;
  p.radius_weight = 0.5F;
  p.select = kSelect;
  p.max_chunks = chunks;
  p.output = output.data();
  const double pairs = 8.0 * batch;
  const double landmark_bytes = pairs * static_cast<double>(indexed) * 128 * 2;
  const double kept_bytes = pairs * (kSelect * kChunk * (kRank + 128.0) + kOutliers * kChunk * 256.0 + 33 * 256) * 2;
  const double rebuild = 2 * pairs * kSelect * kChunk * kRank * 128;
  const double seconds = runner.time(kRepeats, p, skv::cpu::decode_layer, skv::cpu::decode_layer_workspace);
  require_finite(output, "decode_layer");
  report("shadow decode layer", seconds, landmark_bytes + kept_bytes, rebuild, machine);

  Buffer<std::int32_t> selected(batch * 8 * kSelect), counts(batch * 8);
  skv_landmark_topk_params topk{};
  topk.query_type = SKV_F32;
  topk.geometry = g;
  topk.batch = batch;
  topk.queries = queries.data();
  topk.layers = layers.data();
  topk.states = states.data();
  topk.radius_weight = 0.5F;
  topk.select = kSelect;
  topk.max_chunks = chunks;
  topk.selected = selected.data();
  topk.selected_count = counts.data();
  report("  of which landmark_topk",
         runner.time(kRepeats, topk, skv::cpu::landmark_topk, skv::cpu::landmark_topk_workspace), landmark_bytes, 0,
         machine);
  skv_sparse_attention_params sparse{};
  sparse.query_type = sparse.output_type = SKV_F32;
  sparse.geometry = g;
  sparse.batch = batch;
  sparse.queries = queries.data();
  sparse.layers = layers.data();
  sparse.states = states.data();
  sparse.rope = rope.table;
  sparse.select = kSelect;
  sparse.selected = sparse.selected_slot = selected.data();
  sparse.selected_count = counts.data();
  sparse.output = output.data();
  report("  of which sparse_attention",
         runner.time(kRepeats, sparse, skv::cpu::sparse_attention, skv::cpu::sparse_attention_workspace), kept_bytes,
         rebuild, machine);
  return seconds;
}

void prefill(Runner& runner, const Machine& machine, std::int64_t tokens) {
  const skv_geometry g = {8, 4, 64, 8, 40, SKV_F32, SKV_F32, SKV_F32, SKV_F32, 64, 0};
  Buffer<float> queries(tokens * 8 * 64), keys(tokens * 4 * 64), values(tokens * 4 * 64), output(tokens * 8 * 64);
  fill(queries, 21, 1.0F);
  fill(keys, 22, 1.0F);
  fill(values, 23, 1.0F);
  skv_prefill_attention_params p{};
  p.query_type = p.output_type = SKV_F32;
  p.geometry = g;
  p.queries = queries.data();
  p.count = tokens;
  p.keys = keys.data();
  p.values = values.data();
  p.capacity = tokens;
  p.output = output.data();
  const double seconds = runner.time(2, p, skv::cpu::prefill_attention, skv::cpu::prefill_attention_workspace);
  require_finite(output, "prefill_attention");
  report("prefill 8/4 heads x 64, f32", seconds, 0,
         4.0 * 64 * 8 * static_cast<double>(tokens) * static_cast<double>(tokens + 1) / 2, machine);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const int threads = static_cast<int>(argument(1, ThreadPool::processors()));
  const std::int64_t tokens = argument(2, 122880);
  const std::int32_t batch = static_cast<std::int32_t>(argument(3, 1));
  const auto set = chosen_set(argument(4, -1));
  const std::int64_t prefill_tokens = argument(5, 4096);
  ThreadPool pool(threads);
  const Machine machine = measure(pool);
  std::printf("%d threads, instruction set %d; memory: read %.1f GB/s, copy %.1f GB/s (read and written)\n", threads,
              static_cast<int>(set), machine.read / kGiga, machine.copy / kGiga);
  Runner runner(pool, set);
  const double exact = dense(runner, pool, machine, tokens, batch);
  const double sparse = shadow(runner, pool, machine, tokens, batch);
  std::printf("%-34s %9.2f\n", "dense / shadow", exact / sparse);
  if (prefill_tokens > 0) {
    prefill(runner, machine, prefill_tokens);
  }
  return 0;
}
