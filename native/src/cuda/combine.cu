#include "cuda/decode.h"
#include "cuda/elements.cuh"
#include "cuda/mma.cuh"

namespace skv::cuda {
namespace {

constexpr int kCombineThreads = 256;
constexpr int kColumnsTogether = 2;  // a thread's neighbouring columns

struct CombineParams {
  CombineOutput out;
  AttentionPartials partials;
  int first_pair;
  int query_heads, key_value_heads, head_dim, group;
};

// Splits of a pair that have been written.
__device__ int written_splits(const CombineParams& q, std::int64_t length) {
  if (length <= 0) {
    return 0;
  }
  if (q.out.split_tokens == 0) {
    return q.partials.splits;
  }
  return static_cast<int>(
      min((length + q.out.split_tokens - 1) / q.out.split_tokens, static_cast<std::int64_t>(q.partials.splits)));
}

// Adds the parts of an attention in a fixed order. One block a query head.
//
// statistics [B*K][splits][G], sums [B*K][splits][G][D] -> output [B][H][D]. Floor: every part read once, from the
// L2 cache mostly; the latency of one chain of loads bounds it, so the splits are dealt to several rows of threads.
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const __grid_constant__ CombineParams q) {
  __shared__ float rows[kCombineThreads * kColumnsTogether];
  __shared__ float denominators[kCombineThreads];
  __shared__ float warp_largest[kCombineThreads / 32];
  wait_for_earlier();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x) / q.group;
  const int group_head = static_cast<int>(blockIdx.x) % q.group;
  const int session = pair / q.key_value_heads, head = pair % q.key_value_heads;
  const int splits = written_splits(q, q.out.states[session].length);
  const std::int64_t first = static_cast<std::int64_t>(pair) * q.partials.splits * q.group + group_head;
  const float2* const statistics = q.partials.statistics + first;

  float largest = -INFINITY;
  for (int i = thread; i < splits; i += kCombineThreads) {
    largest = fmaxf(largest, statistics[static_cast<std::int64_t>(i) * q.group].x);
  }
  largest = warp_max(largest);
  if (lane == 0) {
    warp_largest[warp] = largest;
  }
  __syncthreads();
  largest = warp_max(lane < kCombineThreads / 32 ? warp_largest[lane] : -INFINITY);

  const int threads_a_row = q.head_dim / kColumnsTogether;
  const int row_count = kCombineThreads / threads_a_row;
  const int row = thread / threads_a_row, column = thread % threads_a_row * kColumnsTogether;
  float2 total = make_float2(0.0F, 0.0F);
  float denominator = 0;
  if (row < row_count) {
#pragma unroll 4
    for (int i = row; i < splits; i += row_count) {
      const std::int64_t at = static_cast<std::int64_t>(i) * q.group;
      const float2 part = statistics[at];
      // A part that holds nothing has not written its sums.
      if (part.y > 0) {
        const float2 x = *reinterpret_cast<const float2*>(q.partials.sums + (first + at) * q.head_dim + column);
        const float weight = exp2_fast(part.x - largest);
        total.x += x.x * weight;
        total.y += x.y * weight;
        denominator += part.y * weight;
      } else if (!(part.y == 0)) {
        denominator = NAN;  // a NaN among the inputs stays one
      }
    }
    rows[row * q.head_dim + column] = total.x;
    rows[row * q.head_dim + column + 1] = total.y;
    if (column == 0) {
      denominators[row] = denominator;
    }
  }
  __syncthreads();
  const std::int64_t query = static_cast<std::int64_t>(session) * q.query_heads + head * q.group + group_head;
  float sum = 0;
  for (int i = 0; i < row_count; ++i) {
    sum += denominators[i];
  }
  for (int d = thread; d < q.head_dim; d += kCombineThreads) {
    float x = 0;
    for (int i = 0; i < row_count; ++i) {
      x += rows[i * q.head_dim + d];
    }
    store_element(q.out.output, q.out.output_type, query * q.head_dim + d, sum == 0 ? 0.0F : x / sum);
  }
  if (thread == 0 && q.out.log_sum_exp) {
    q.out.log_sum_exp[query] = sum == 0 ? -INFINITY : (largest + log2f(sum)) * kLn2;
  }
  if (q.out.counters && thread == 0 && head == 0 && group_head == 0) {
    skv_decode_counters& counters = q.out.counters[session];
    std::int64_t selected = 0, fetched = 0;
    double mass = 0;
    for (int k = 0; k < q.key_value_heads; ++k) {
      selected += q.out.selected_count[pair + k];
      fetched += q.out.fetch_count[pair + k];
      mass += q.out.mass[pair + k];
    }
    counters.selected += selected;
    counters.fetched += fetched;
    counters.mass += mass;
  }
}

}  // namespace

std::uint64_t attention_partials_bytes(std::int64_t pairs, int splits, const skv_geometry& geometry) {
  const std::uint64_t parts = static_cast<std::uint64_t>(pairs) * static_cast<std::uint64_t>(splits) *
                              static_cast<std::uint64_t>(group_size(geometry));
  return Workspace::align(parts * sizeof(float2)) +
         Workspace::align(parts * static_cast<std::uint64_t>(geometry.head_dim) * sizeof(float));
}

AttentionPartials take_attention_partials(std::int64_t pairs, int splits, const skv_geometry& geometry,
                                          Workspace& workspace) {
  const std::uint64_t parts = static_cast<std::uint64_t>(pairs) * static_cast<std::uint64_t>(splits) *
                              static_cast<std::uint64_t>(group_size(geometry));
  AttentionPartials partials;
  partials.statistics = workspace.take<float2>(parts);
  partials.sums = workspace.take<float>(parts * static_cast<std::uint64_t>(geometry.head_dim));
  partials.splits = splits;
  return partials;
}

void launch_combine(const CombineOutput& out, const AttentionPartials& partials, const skv_geometry& geometry,
                    PairRange pairs, bool early, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const CombineParams q = {out,
                           partials,
                           pairs.first,
                           geometry.query_heads,
                           geometry.key_value_heads,
                           geometry.head_dim,
                           group_size(geometry)};
  launch_beside("combining attention", Beside{.early = early}, combine_kernel,
                dim3(static_cast<unsigned>(pairs.count * q.group)), dim3(kCombineThreads), 0, stream, q);
}

}  // namespace skv::cuda
