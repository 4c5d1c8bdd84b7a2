// Prefill attention against double precision, over keys and values that are NaN where nobody may look.
#include "gpu_test.h"

namespace {

using gpu::Array;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

void prefill(skv::Backend& backend, std::mt19937_64& generator, std::int32_t query_type, std::int32_t output_type,
             std::int32_t query_heads, std::int32_t heads, std::int32_t head_dim, std::int64_t count, std::int64_t first,
             std::int64_t gap) {
  const std::int64_t capacity = first + count + 37, keys_seen = first + count;
  const std::int64_t stride = query_heads * head_dim + gap;
  // Logits of several units: some rows attend to few keys.
  const auto q = gpu::rounded(gpu::normals(generator, count * stride, 1.5F), query_type);
  auto k = gpu::rounded(gpu::normals(generator, heads * capacity * head_dim, 1.5F), SKV_BF16);
  auto v = gpu::rounded(gpu::normals(generator, heads * capacity * head_dim), SKV_BF16);
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t i = keys_seen * head_dim; i < capacity * head_dim; ++i) {
      k[at(head * capacity * head_dim + i)] = v[at(head * capacity * head_dim + i)] = NAN;
    }
  }
  Array queries(backend, q, query_type), keys(backend, k, SKV_BF16), values(backend, v, SKV_BF16);
  Array output(backend, count * query_heads * head_dim * gpu::size_of(output_type));
  skv_prefill_attention_params p = {};
  p.query_type = query_type;
  p.output_type = output_type;
  p.geometry.query_heads = query_heads;
  p.geometry.key_value_heads = heads;
  p.geometry.head_dim = head_dim;
  p.geometry.storage_type = SKV_BF16;
  p.queries = queries;
  p.query_stride = stride;
  p.count = count;
  p.first_position = first;
  p.keys = keys;
  p.values = values;
  p.capacity = capacity;
  p.output = output;
  backend.prefill_attention(p);
  const auto actual = output.values(output_type);
  std::vector<double> expected(actual.size()), spread(actual.size());
  const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
  for (std::int64_t query = 0; query < count; ++query) {
    for (std::int32_t head = 0; head < query_heads; ++head) {
      const std::int64_t kv = head / (query_heads / heads);
      std::vector<double> logits;
      double top = -INFINITY, sum = 0;
      for (std::int64_t key = 0; key <= first + query; ++key) {
        double dot = 0;
        for (std::int32_t d = 0; d < head_dim; ++d) {
          dot += static_cast<double>(gpu::bf16_value(gpu::bf16_bits(q[at(query * stride + head * head_dim + d)]))) *
                 static_cast<double>(k[at((kv * capacity + key) * head_dim + d)]);
        }
        logits.push_back(dot * scale);
        top = std::max(top, logits.back());
      }
      for (double& logit : logits) {
        logit = std::exp(logit - top);
        sum += logit;
      }
      for (std::int32_t d = 0; d < head_dim; ++d) {
        double value = 0, absolute = 0;
        for (std::size_t key = 0; key < logits.size(); ++key) {
          const double term = logits[key] / sum *
                              static_cast<double>(v[at((kv * capacity + static_cast<std::int64_t>(key)) * head_dim + d)]);
          value += term;
          absolute += std::fabs(term);
        }
        expected[at((query * query_heads + head) * head_dim + d)] = value;
        spread[at((query * query_heads + head) * head_dim + d)] = absolute;
      }
    }
  }
  // Weights are rounded to bf16 before they meet the values; logits carry fp32 sums of head_dim products of up
  // to 10 or so each; the output is rounded once.
  const double weights = gpu::kBf16Epsilon / 2 + 64 * std::sqrt(static_cast<double>(head_dim)) * gpu::kF32Epsilon;
  gpu::check_all("prefill " + std::to_string(query_heads) + "/" + std::to_string(heads) + " x " + std::to_string(head_dim) +
                     ", " + std::to_string(count) + " after " + std::to_string(first),
                 actual, expected, [&](std::size_t i) {
                   return weights * spread[i] + gpu::epsilon_of(output_type) / 2 * std::fabs(expected[i]);
                 });
}

}  // namespace

int main() {
  std::string reason;
  auto backend = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  auto generator = check::fresh_generator();
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 8, 2, 128, 1, 0, 0);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 8, 2, 128, 300, 0, 0);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 7, 1, 128, 129, 200, 256);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 4, 4, 64, 257, 3, 0);
  prefill(*backend, generator, SKV_BF16, SKV_F32, 16, 1, 64, 37, 511, 0);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 8, 1, 96, 200, 77, 8);
  prefill(*backend, generator, SKV_F32, SKV_F32, 4, 2, 96, 65, 0, 0);
  prefill(*backend, generator, SKV_F16, SKV_F16, 4, 1, 80, 150, 64, 0);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 2, 1, 256, 190, 30, 0);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 2, 2, 200, 70, 1, 0);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 3, 1, 34, 140, 10, 2);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 3, 3, 130, 100, 0, 2);
  prefill(*backend, generator, SKV_BF16, SKV_BF16, 2, 1, 128, 64, 64, 0);
  return check::verdict();
}
