#include <algorithm>

#include "cuda/attention_unit.cuh"
#include "cuda/decode.h"

namespace skv::cuda {
namespace {

// Tokens of a split: fixed, so that a session's result does not depend on the batch.
constexpr int kSplitTokens = 1024;
constexpr int kDenseWarps = 4;
constexpr int kDenseThreads = 32 * kDenseWarps;
constexpr int kTileTokens = 16;

struct DenseParams {
  skv_dense_attention_params p;
  AttentionPartials partials;
  int group;
};

// Attention of a pair over 1024 tokens a block, by warps that need neither shared memory nor barriers until the end.
//
// keys, values [K][capacity][D] -> partials [B*K][splits][G]([D]). Floor: every key and value of the context once,
// 4 * D bytes a token and key/value head; bound by memory. A warp takes 16 tokens at a time. A quad's lanes read 64
// consecutive bytes of a key, which are operands of the scores as they are; eight lanes read 128 consecutive bytes
// of a value, and pairs of tokens are interleaved in registers. The keys of the next tile are asked for as soon as
// this tile's have been used, likewise the values, so that loads are always under way.
// With G <= 8 the lower 8 rows of a fragment carry what rounding to bf16 left of queries and weights.
// Reached: 0.986 ms, 4.08 TB/s, 99 % of the copy rate (H200, 2026-11-24, JMH, 8 x 122880 tokens, 8 heads, D 128).
template <int kHeadDim, bool kWide>
__global__ void __launch_bounds__(kDenseThreads, 2) dense_attention_kernel(const __grid_constant__ DenseParams q) {
  constexpr int kSpans = kHeadDim / 32;
  constexpr int kStrips = kHeadDim / 8;
  constexpr int kWords = kHeadDim / 64;           // 16-byte words of a value that a lane takes
  constexpr bool kHalfWord = kHeadDim % 64 != 0;  // and 8 bytes of the last 32 columns
  constexpr int kHalves = kWide ? 2 : 1;
  __shared__ float block_sums[kDenseWarps][kWide ? 16 : 8][kHeadDim];
  __shared__ float largests[kDenseWarps][16], denominators[kDenseWarps][16];
  const skv_dense_attention_params& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int row = lane / 4, quad_lane = lane % 4;
  const int heads = p.geometry.key_value_heads;
  const int pair = static_cast<int>(blockIdx.y);
  const int session = pair / heads, head = pair % heads;
  const std::int64_t length = min(p.states[session].length, static_cast<std::int64_t>(p.max_length));
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kSplitTokens;
  if (begin >= length) {
    return;
  }
  const int tokens = static_cast<int>(min(length - begin, static_cast<std::int64_t>(kSplitTokens)));
  const skv_dense_layer& layer = p.layers[session];
  const std::int64_t first_row = head * layer.capacity + begin;
  const auto* const keys = static_cast<const __nv_bfloat16*>(layer.keys) + first_row * kHeadDim;
  const auto* const values = static_cast<const __nv_bfloat16*>(layer.values) + first_row * kHeadDim;

  uint4 k[2][kSpans];
  uint4 v[4][kWords > 0 ? kWords : 1];
  uint2 w[4];
  const auto load_keys = [&](int tile) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int token = min(tile * kTileTokens + 8 * n + row, tokens - 1);
#pragma unroll
      for (int s = 0; s < kSpans; ++s) {
        k[n][s] = load_once_16(keys + token * kHeadDim + 32 * s + 8 * quad_lane);
      }
    }
  };
  const auto load_values = [&](int tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = min(tile * kTileTokens + 2 * quad_lane + (i & 1) + 8 * (i >> 1), tokens - 1);
#pragma unroll
      for (int s = 0; s < kWords; ++s) {
        v[i][s] = load_once_16(values + token * kHeadDim + 64 * s + 8 * row);
      }
      if constexpr (kHalfWord) {
        w[i] = load_once_8(values + token * kHeadDim + 64 * kWords + 4 * row);
      }
    }
  };
  const int tiles = (tokens + kTileTokens - 1) / kTileTokens;
  if (warp < tiles) {
    load_keys(warp);
    load_values(warp);
  }

  std::uint32_t a[kSpans][2][4];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int group_head = row + 8 * half;
    const std::int64_t base =
        (static_cast<std::int64_t>(session) * p.geometry.query_heads + head * q.group + group_head) * kHeadDim;
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = base + 32 * s + 8 * quad_lane + 2 * i;
        const float x = group_head < q.group ? load_element(p.queries, p.query_type, at) : 0.0F;
        const float y = group_head < q.group ? load_element(p.queries, p.query_type, at + 1) : 0.0F;
        const std::uint32_t high = pack_bf16(x, y);
        // i: 0, 1 are the words of the first instruction's two inner halves, 2, 3 of the second's.
        if constexpr (kWide) {
          a[s][i / 2][(i % 2) * 2 + half] = high;
        } else {
          a[s][i / 2][(i % 2) * 2] = high;
          a[s][i / 2][(i % 2) * 2 + 1] = pack_bf16(x - bf16_low(high), y - bf16_high(high));
        }
      }
    }
  }

  const float scale = rsqrtf(static_cast<float>(kHeadDim)) * kLog2E;
  float largest[kHalves], denominator[kHalves];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    largest[half] = -INFINITY;
    denominator[half] = 0;
  }
  float sums[kStrips][4];
#pragma unroll
  for (int j = 0; j < kStrips; ++j) {
    sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0;
  }
  for (int tile = warp; tile < tiles; tile += kDenseWarps) {
    float s[2][4] = {};
#pragma unroll
    for (int span = 0; span < kSpans; ++span) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mma_bf16(s[n], a[span][0][0], a[span][0][1], a[span][0][2], a[span][0][3], k[n][span].x, k[n][span].y);
        mma_bf16(s[n], a[span][1][0], a[span][1][1], a[span][1][2], a[span][1][3], k[n][span].z, k[n][span].w);
      }
    }
    const int next = tile + kDenseWarps;
    if (next < tiles) {
      load_keys(next);
    }
    const int token = tile * kTileTokens + 2 * quad_lane;
    float x[kHalves][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool present = token + (i & 1) + 8 * (i >> 1) < tokens;
      if constexpr (kWide) {
        x[0][i] = present ? s[i >> 1][i & 1] * scale : -INFINITY;
        x[1][i] = present ? s[i >> 1][2 + (i & 1)] * scale : -INFINITY;
      } else {
        x[0][i] = present ? (s[i >> 1][i & 1] + s[i >> 1][2 + (i & 1)]) * scale : -INFINITY;
      }
    }
    float factor[kHalves];
    bool changed = false;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float most = fmaxf(fmaxf(x[half][0], x[half][1]), fmaxf(x[half][2], x[half][3]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 2));
      most = fmaxf(most, largest[half]);
      factor[half] = largest[half] > -INFINITY ? exp2_fast(largest[half] - most) : 0.0F;
      changed |= most > largest[half];
      largest[half] = most;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[half][i] = most > -INFINITY ? exp2_fast(x[half][i] - most) : x[half][i] - x[half][i];
      }
      denominator[half] = denominator[half] * factor[half] + ((x[half][0] + x[half][1]) + (x[half][2] + x[half][3]));
    }
    if (__any_sync(0xffffffffU, changed)) {
      const float upper = factor[0], lower = factor[kHalves - 1];
#pragma unroll
      for (int j = 0; j < kStrips; ++j) {
        sums[j][0] *= upper;
        sums[j][1] *= upper;
        sums[j][2] *= lower;
        sums[j][3] *= lower;
      }
    }
    const std::uint32_t p0 = pack_bf16(x[0][0], x[0][1]), p2 = pack_bf16(x[0][2], x[0][3]);
    std::uint32_t p1, p3;
    if constexpr (kWide) {
      p1 = pack_bf16(x[1][0], x[1][1]);
      p3 = pack_bf16(x[1][2], x[1][3]);
    } else {
      p1 = pack_bf16(x[0][0] - bf16_low(p0), x[0][1] - bf16_high(p0));
      p3 = pack_bf16(x[0][2] - bf16_low(p2), x[0][3] - bf16_high(p2));
    }
    // Word r of a value holds columns 2r and 2r + 1 of this lane's; strip j takes column j of every lane's.
    const auto add = [&](int strip, std::uint32_t v0, std::uint32_t v1, std::uint32_t v8, std::uint32_t v9) {
      mma_bf16(sums[strip], p0, p1, p2, p3, __byte_perm(v0, v1, 0x5410), __byte_perm(v8, v9, 0x5410));
      mma_bf16(sums[strip + 1], p0, p1, p2, p3, __byte_perm(v0, v1, 0x7632), __byte_perm(v8, v9, 0x7632));
    };
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      add(8 * j, v[0][j].x, v[1][j].x, v[2][j].x, v[3][j].x);
      add(8 * j + 2, v[0][j].y, v[1][j].y, v[2][j].y, v[3][j].y);
      add(8 * j + 4, v[0][j].z, v[1][j].z, v[2][j].z, v[3][j].z);
      add(8 * j + 6, v[0][j].w, v[1][j].w, v[2][j].w, v[3][j].w);
    }
    if constexpr (kHalfWord) {
      add(8 * kWords, w[0].x, w[1].x, w[2].x, w[3].x);
      add(8 * kWords + 2, w[0].y, w[1].y, w[2].y, w[3].y);
    }
    if (next < tiles) {
      load_values(next);
    }
  }

#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    float sum = denominator[half];
    sum += __shfl_xor_sync(0xffffffffU, sum, 1);
    sum += __shfl_xor_sync(0xffffffffU, sum, 2);
    if (quad_lane == 0) {
      largests[warp][row + 8 * half] = largest[half];
      denominators[warp][row + 8 * half] = sum;
    }
  }
#pragma unroll
  for (int j = 0; j < kStrips; ++j) {
    const bool whole = j < 8 * kWords;
    const int column = whole ? j / 8 * 64 + j % 8 + 16 * quad_lane : 64 * kWords + (j - 8 * kWords) + 8 * quad_lane;
    const int next = column + (whole ? 8 : 4);
    if constexpr (kWide) {
      block_sums[warp][row][column] = sums[j][0];
      block_sums[warp][row][next] = sums[j][1];
      block_sums[warp][row + 8][column] = sums[j][2];
      block_sums[warp][row + 8][next] = sums[j][3];
    } else {
      block_sums[warp][row][column] = sums[j][0] + sums[j][2];
      block_sums[warp][row][next] = sums[j][1] + sums[j][3];
    }
  }
  __syncthreads();
  const std::int64_t part = (static_cast<std::int64_t>(pair) * q.partials.splits + blockIdx.x) * q.group;
  for (int i = thread; i < q.group * kHeadDim; i += kDenseThreads) {
    const int g = i / kHeadDim, d = i % kHeadDim;
    float most = largests[0][g];
#pragma unroll
    for (int j = 1; j < kDenseWarps; ++j) {
      most = fmaxf(most, largests[j][g]);
    }
    float total = 0, weight_sum = 0;
#pragma unroll
    for (int j = 0; j < kDenseWarps; ++j) {
      // A warp without tokens has zeros.
      const float factor = largests[j][g] > -INFINITY ? exp2_fast(largests[j][g] - most) : 1.0F;
      total += block_sums[j][g][d] * factor;
      weight_sum += denominators[j][g] * factor;
    }
    q.partials.sums[part * kHeadDim + i] = total;
    if (d == 0) {
      q.partials.statistics[part + g] = make_float2(most, weight_sum);
    }
  }
}

// The same for every shape, without tensor cores: correct, not fast. A thread owns a column of the output.
__global__ void __launch_bounds__(kUnitThreads) dense_attention_any_kernel(const __grid_constant__ DenseParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_dense_attention_params& p = q.p;
  const int dim = p.geometry.head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  const int pair_index = static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(p.geometry, pair_index, q.group);
  const std::int64_t length = min(p.states[pair.session].length, static_cast<std::int64_t>(p.max_length));
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kSplitTokens;
  if (begin >= length) {
    return;
  }
  const std::int64_t end = min(length, begin + kSplitTokens);
  const skv_dense_layer& layer = p.layers[pair.session];
  const UnitLayout layout = unit_layout(0, 0, 1, q.group, true);
  auto& rows = *reinterpret_cast<UnitRows*>(shared + layout.rows);
  auto* const scores = reinterpret_cast<float*>(shared + layout.scores);
  auto& statistics = *reinterpret_cast<Statistics*>(shared + layout.statistics);
  auto* const queries = reinterpret_cast<float*>(shared + layout.queries);
  if (thread < SKV_MAX_GROUP) {
    statistics.largest[thread] = -INFINITY;
    statistics.sum[thread] = 0.0F;
  }
  for (int i = thread; i < q.group * dim; i += kUnitThreads) {
    queries[i] = load_element(p.queries, p.query_type, pair.first_query * dim + i);
  }
  float sums[SKV_MAX_GROUP] = {};
  for (std::int64_t first = begin; first < end; first += kUnitTokens) {
    if (thread < kUnitTokens) {
      const std::int64_t token = first + thread;
      const std::int64_t at = (pair.head * layer.capacity + token) * dim;
      rows.key[thread] = token < end ? static_cast<const __nv_bfloat16*>(layer.keys) + at : nullptr;
      rows.value[thread] = token < end ? static_cast<const __nv_bfloat16*>(layer.values) + at : nullptr;
    }
    __syncthreads();
    any_scores(rows, false, SKV_BF16, nullptr, dim, 0, skv_rope{}, q.group, queries,
               reinterpret_cast<float*>(shared + layout.base), scores);
    __syncthreads();
    softmax_step(scores, q.group, statistics,
                 [&](int head, int token, float weight) { scores[head * kScoreStride + token] = weight; });
    __syncthreads();
    if (thread < dim) {
#pragma unroll
      for (int head = 0; head < SKV_MAX_GROUP; ++head) {
        if (head < q.group) {
          sums[head] *= statistics.factor[head];
        }
      }
      for (int token = 0; token < kUnitTokens && first + token < end; ++token) {
        const float value = __bfloat162float(static_cast<const __nv_bfloat16*>(rows.value[token])[thread]);
#pragma unroll
        for (int head = 0; head < SKV_MAX_GROUP; ++head) {
          if (head < q.group) {
            sums[head] += scores[head * kScoreStride + token] * value;
          }
        }
      }
    }
    __syncthreads();
  }
  const std::int64_t part = (static_cast<std::int64_t>(pair_index) * q.partials.splits + blockIdx.x) * q.group;
  if (thread < q.group) {
    q.partials.statistics[part + thread] = make_float2(statistics.largest[thread], statistics.sum[thread]);
  }
  if (thread < dim) {
#pragma unroll
    for (int head = 0; head < SKV_MAX_GROUP; ++head) {
      if (head < q.group) {
        q.partials.sums[(part + head) * dim + thread] = sums[head];
      }
    }
  }
}

int splits_of(std::int64_t max_length) {
  return static_cast<int>(std::max<std::int64_t>(1, (max_length + kSplitTokens - 1) / kSplitTokens));
}

template <int kHeadDim>
void launch_tuned(const DenseParams& q, dim3 grid, cudaStream_t stream) {
  const auto kernel = q.group > 8 ? dense_attention_kernel<kHeadDim, true> : dense_attention_kernel<kHeadDim, false>;
  launch_kernel("dense attention", kernel, grid, dim3(kDenseThreads), 0, stream, q);
}

}  // namespace

std::uint64_t dense_attention_workspace(const skv_dense_attention_params& p, const DeviceTraits&) {
  return attention_partials_bytes(all_pairs(p.batch, p.geometry).count, splits_of(p.max_length), p.geometry);
}

void dense_attention(const skv_dense_attention_params& p, Launch& launch) {
  check_attention_geometry(p.geometry, p.query_type, "dense_attention");
  check_attention_geometry(p.geometry, p.output_type, "dense_attention");
  launch.workspace.require(dense_attention_workspace(p, launch.traits), "dense_attention");
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  if (pairs.count == 0) {
    return;
  }
  Workspace workspace = launch.workspace;
  const AttentionPartials partials =
      take_attention_partials(pairs.count, splits_of(p.max_length), p.geometry, workspace);
  const DenseParams q = {p, partials, group_size(p.geometry)};
  const dim3 grid(static_cast<unsigned>(partials.splits), static_cast<unsigned>(pairs.count));
  switch (p.geometry.head_dim) {
    case 64:
      launch_tuned<64>(q, grid, launch.stream);
      break;
    case 96:
      launch_tuned<96>(q, grid, launch.stream);
      break;
    case 128:
      launch_tuned<128>(q, grid, launch.stream);
      break;
    default:
      launch_kernel("dense attention", dense_attention_any_kernel, grid, dim3(kUnitThreads),
                    static_cast<std::size_t>(unit_layout(0, 0, 1, q.group, true).end), launch.stream, q);
  }
  CombineOutput out;
  out.output = p.output;
  out.output_type = p.output_type;
  out.log_sum_exp = p.log_sum_exp;
  out.states = p.states;
  out.split_tokens = kSplitTokens;
  launch_combine(out, partials, p.geometry, pairs, false, launch.stream);
}

}  // namespace skv::cuda
