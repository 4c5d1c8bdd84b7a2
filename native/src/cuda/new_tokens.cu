#include "cuda/decode.h"
#include "cuda/elements.cuh"
#include "cuda/mma.cuh"

namespace skv::cuda {
namespace {

constexpr int kTokenThreads = 64;

// The new token of every session: its queries rotated into f32, its key rotated and its value stored as bf16 in the
// last row of the cache. One block a head of [H queries, K keys, K values].
//
// A few hundred KB in and out: the latency of two dependent loads bounds it.
__global__ void __launch_bounds__(kTokenThreads) new_tokens_kernel(const __grid_constant__ NewTokens p) {
  let_next_begin();
  const int session = static_cast<int>(blockIdx.y);
  const std::int64_t length = p.states[session].length;
  if (length <= 0) {
    return;
  }
  const int dim = p.geometry.head_dim, query_heads = p.geometry.query_heads, heads = p.geometry.key_value_heads;
  const std::int64_t position = length - 1;
  int head = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  std::int64_t row = 0;
  void *key_rows = nullptr, *value_rows = nullptr;
  if (p.shadow) {
    const skv_shadow_layer& layer = p.shadow[session];
    row = position % p.geometry.window;
    row += static_cast<std::int64_t>((head - query_heads) % heads) * p.geometry.window;
    key_rows = layer.recent_keys;
    value_rows = layer.recent_values;
  } else {
    const skv_dense_layer& layer = p.dense[session];
    if (position >= layer.capacity) {
      return;
    }
    row = position + static_cast<std::int64_t>((head - query_heads) % heads) * layer.capacity;
    key_rows = layer.keys;
    value_rows = layer.values;
  }
  if (head >= query_heads + heads) {
    head -= query_heads + heads;
    for (int d = thread; d < dim; d += kTokenThreads) {
      store_element(value_rows, SKV_BF16, row * dim + d,
                    load_element(p.values, p.input_type, session * p.value_stride + head * dim + d));
    }
    return;
  }
  const bool query = head < query_heads;
  head -= query ? 0 : query_heads;
  const void* const input = query ? p.queries : p.keys;
  const std::int64_t from = session * (query ? p.query_stride : p.key_stride) + static_cast<std::int64_t>(head) * dim;
  void* const output = query ? p.rotated_queries : key_rows;
  const std::int32_t type = query ? SKV_F32 : SKV_BF16;
  const std::int64_t to = query ? (static_cast<std::int64_t>(session) * query_heads + head) * dim : row * dim;
  for (int pair = thread; pair < p.rope.rotary_dim / 2; pair += kTokenThreads) {
    const float2 turn = rotation(p.rope, position, pair);
    const int2 at = rotated_elements(p.rope, pair);
    const float x = load_element(input, p.input_type, from + at.x), y = load_element(input, p.input_type, from + at.y);
    store_element(output, type, to + at.x, x * turn.x - y * turn.y);
    store_element(output, type, to + at.y, y * turn.x + x * turn.y);
  }
  for (int d = p.rope.rotary_dim + thread; d < dim; d += kTokenThreads) {
    store_element(output, type, to + d, load_element(input, p.input_type, from + d));
  }
}

}  // namespace

void launch_new_tokens(const NewTokens& p, cudaStream_t stream) {
  if (p.batch == 0) {
    return;
  }
  NewTokens q = p;
  const std::int64_t query_width = static_cast<std::int64_t>(p.geometry.query_heads) * p.geometry.head_dim;
  const std::int64_t key_width = static_cast<std::int64_t>(p.geometry.key_value_heads) * p.geometry.head_dim;
  q.query_stride = p.query_stride ? p.query_stride : query_width;
  q.key_stride = p.key_stride ? p.key_stride : key_width;
  q.value_stride = p.value_stride ? p.value_stride : key_width;
  const auto heads = static_cast<unsigned>(p.geometry.query_heads + 2 * p.geometry.key_value_heads);
  launch_beside("new tokens", new_tokens_kernel, dim3(heads, static_cast<unsigned>(p.batch)), dim3(kTokenThreads), 0,
                stream, q);
}

}  // namespace skv::cuda
