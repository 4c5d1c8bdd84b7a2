#include "cuda/launch.h"
#include "cuda/low_rank_tile.cuh"

namespace skv::cuda {
namespace {

// Rotated keys from coefficients, 64 tokens of one head a block.
//
// coefficients [..][r], basis [K][r][D] -> rotated_keys [K][capacity][D]. Floor: keys written once and
// 2*count*r*K*D operations; not on the hot path.
template <int kTiles>
__global__ void __launch_bounds__(kTileThreads)
    rebuild_keys_kernel(const __grid_constant__ skv_rebuild_keys_params p) {
  using S = __nv_bfloat16;
  extern __shared__ __align__(128) unsigned char shared[];
  const TileShape shape(p.rank, p.head_dim);
  float* const sums = reinterpret_cast<float*>(shared);
  S* const coefficients = reinterpret_cast<S*>(sums + shape.sum_elements());
  S* const slice = coefficients + shape.coefficient_elements();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTileTokens;
  const int tokens = static_cast<int>(min(static_cast<std::int64_t>(kTileTokens), p.count - first));
  const std::int64_t position = p.first_position + first;
  const std::int64_t head = blockIdx.y;
  const S* const from = static_cast<const S*>(p.coefficients) + position * p.rank;
  for (int i = static_cast<int>(threadIdx.x); i < kTileTokens * shape.rank_padded; i += kTileThreads) {
    const int token = i / shape.rank_padded, j = i % shape.rank_padded;
    coefficients[token * shape.coefficient_pitch() + j] =
        token < tokens && j < p.rank ? from[static_cast<std::int64_t>(token) * p.rank + j] : __float2bfloat16_rn(0.0F);
  }
  multiply_basis<kTiles>(shape, coefficients, slice, sums,
                         static_cast<const S*>(p.basis) + head * p.rank * p.head_dim);
  const int half = p.rope.rotary_dim / 2;
  const int items = p.head_dim - half;  // pairs, then the elements that pass through
  S* const keys = static_cast<S*>(p.rotated_keys) + head * p.capacity * p.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * items; i += kTileThreads) {
    const int token = i / items, pair = i % items;
    const float* const x = sums + token * shape.sum_pitch();
    S* const row = keys + (position + token) % p.capacity * p.head_dim;
    if (pair >= half) {
      const int element = p.rope.rotary_dim + pair - half;
      row[element] = from_float<S>(x[element]);
      continue;
    }
    float cosine[1], sine[1];
    rotations<1>(p.rope, position + token, pair, cosine, sine);
    const bool interleaved = p.rope.pairing == SKV_INTERLEAVED;
    const int low = interleaved ? 2 * pair : pair, high = interleaved ? 2 * pair + 1 : pair + half;
    row[low] = from_float<S>(x[low] * cosine[0] - x[high] * sine[0]);
    row[high] = from_float<S>(x[high] * cosine[0] + x[low] * sine[0]);
  }
}

}  // namespace

std::uint64_t rebuild_keys_workspace(const skv_rebuild_keys_params&, const DeviceTraits&) { return 0; }

void rebuild_keys(const skv_rebuild_keys_params& p, Launch& launch) {
  require_bf16(p.type, "rebuild_keys", "the type");
  if (p.count == 0) {
    return;
  }
  const dim3 grid(blocks_for(p.count, kTileTokens), static_cast<unsigned>(p.key_value_heads));
  const auto kernel = p.head_dim <= 128 ? rebuild_keys_kernel<kTileMost / 2> : rebuild_keys_kernel<kTileMost>;
  launch_kernel("rebuild_keys", kernel, grid, dim3(kTileThreads), TileShape(p.rank, p.head_dim).bytes(), launch.stream,
                p);
}

}  // namespace skv::cuda
