#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 8;  // of a lane: 16 bytes of a row

// Sums each of N numbers over a group of L lanes, halving how many a lane holds at every exchange: N - 1 + log
// L shuffles instead of N log L. Leaves the sums of max(1, N/L) of the numbers in a lane, spread over the group.
template <int L, int N>
__device__ inline void sum_spread(float (&x)[N]) {
  int held = N;
#pragma unroll
  for (int step = L / 2; step; step >>= 1) {
    if (held > 1) {
      held /= 2;
      const bool upper = threadIdx.x & step;
#pragma unroll
      for (int i = 0; i < N / 2; ++i) {
        if (i < held) {
          const float kept = upper ? x[i + held] : x[i];
          const float sent = upper ? x[i] : x[i + held];
          x[i] = kept + __shfl_xor_sync(0xffffffffU, sent, step);
        }
      }
    } else {
      x[0] += __shfl_xor_sync(0xffffffffU, x[0], step);
    }
  }
}

template <int L>
__device__ inline float group_sum(float x) {
#pragma unroll
  for (int step = L / 2; step; step >>= 1) {
    x += __shfl_xor_sync(0xffffffffU, x, step);
  }
  return x;
}

template <int L>
__device__ inline float group_max(float x) {
#pragma unroll
  for (int step = L / 2; step; step >>= 1) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, step));
  }
  return x;
}

__device__ inline float cosine_of(float dot, float squares, float mean_squares) {
  const float product = squares * mean_squares;
  return product > 0 ? dot * rsqrtf(squares) * rsqrtf(mean_squares) : 0.0F;
}

// Mean, radius and smallest cosine of whole chunks: L lanes a chunk hold all C members in registers, so the
// keys are read once.
//
// rotated_keys [K][capacity][D] -> landmarks [K][chunk_capacity][D], radius and cosine [K][chunk_capacity].
// Floor: keys read once, 1/C of that written (122880 tokens x 8 heads x 128: 252 MB + 31 MB); bound by memory.
// Reached for that: 0.096 ms, 72 % of the copy rate (H200, 2026-11-24, JMH).
template <int L, int C, bool kBytes>
__global__ void __launch_bounds__(kThreads)
    landmark_build_kernel(const __grid_constant__ Several<skv_landmark_build_params> all) {
  using S = __nv_bfloat16;
  const skv_landmark_build_params& p = all.of[blockIdx.z];
  constexpr int kHeld = C > L ? C / L : 1;
  const int lane = static_cast<int>(threadIdx.x) % L;
  const std::int64_t group = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / L;
  const std::int64_t head = blockIdx.y;
  // Lanes beyond the end repeat the last chunk: the shuffles need all of them.
  const std::int64_t chunk = p.first_chunk + min(group, p.chunks - 1);
  const int column = lane * kColumns;
  const bool inside = column < p.head_dim;
  const S* const keys = static_cast<const S*>(p.rotated_keys) + head * p.capacity * p.head_dim + column;
  const std::int64_t first_row = chunk * C % p.capacity;
  Vector<S, kColumns> members[C];
#pragma unroll
  for (int t = 0; t < C; ++t) {
    const std::int64_t row = first_row + t < p.capacity ? first_row + t : first_row + t - p.capacity;
    if (inside) {
      members[t] = *reinterpret_cast<const Vector<S, kColumns>*>(keys + row * p.head_dim);
    } else {
      *reinterpret_cast<uint4*>(&members[t]) = make_uint4(0, 0, 0, 0);
    }
  }
  float mean[kColumns] = {};
#pragma unroll
  for (int t = 0; t < C; ++t) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      mean[j] += to_float(members[t].at[j]);
    }
  }
  float mean_squares = 0;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    mean[j] *= 1.0F / C;
    mean_squares += mean[j] * mean[j];
  }
  mean_squares = group_sum<L>(mean_squares);

  // The landmark as it is stored.
  const std::int64_t place = head * p.chunk_capacity + chunk;
  float stored[kColumns];
  if constexpr (kBytes) {
    float largest = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      largest = fmaxf(largest, fabsf(mean[j]));
    }
    const float scale = group_max<L>(largest) / 127.0F;
    Vector<std::int8_t, kColumns> bytes;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float level = scale > 0 ? rintf(mean[j] / scale) : 0.0F;
      bytes.at[j] = static_cast<std::int8_t>(fminf(fmaxf(level, -127.0F), 127.0F));
      stored[j] = static_cast<float>(bytes.at[j]) * scale;
    }
    if (inside && group < p.chunks) {
      *reinterpret_cast<Vector<std::int8_t, kColumns>*>(static_cast<std::int8_t*>(p.landmarks) + place * p.head_dim +
                                                        column) = bytes;
      if (lane == 0) {
        p.landmark_scales[place] = scale;
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      stored[j] = to_float(from_float<S>(mean[j]));
    }
    if (inside && group < p.chunks) {
      store_floats(static_cast<S*>(p.landmarks) + place * p.head_dim + column, stored);
    }
  }

  float dot[C], squares[C], distance[C];
#pragma unroll
  for (int t = 0; t < C; ++t) {
    dot[t] = squares[t] = distance[t] = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float x = to_float(members[t].at[j]);
      const float off = x - stored[j];
      dot[t] = fmaf(x, mean[j], dot[t]);
      squares[t] = fmaf(x, x, squares[t]);
      distance[t] = fmaf(off, off, distance[t]);
    }
  }
  sum_spread<L>(dot);
  sum_spread<L>(squares);
  sum_spread<L>(distance);
  float farthest = 0, smallest = 1;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    farthest = fmaxf(farthest, distance[i]);
    const float cosine = cosine_of(dot[i], squares[i], mean_squares);
    smallest = i ? fminf(smallest, cosine) : cosine;
  }
  farthest = group_max<L>(farthest);
  smallest = -group_max<L>(-smallest);
  if (lane == 0 && group < p.chunks) {
    p.radius[place] = sqrtf(farthest);
    if (p.cosine) {
      p.cosine[place] = smallest;
    }
  }
}

// The same for head dims that are no multiple of 8: a warp a chunk, members read three times, from the caches.
template <int C, bool kBytes>
__global__ void __launch_bounds__(kThreads)
    any_head_dim_kernel(const __grid_constant__ Several<skv_landmark_build_params> all) {
  using S = __nv_bfloat16;
  const skv_landmark_build_params& p = all.of[blockIdx.z];
  constexpr int kPerLane = SKV_MAX_HEAD_DIM / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t index = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (index >= p.chunks) {
    return;
  }
  const std::int64_t head = blockIdx.y, chunk = p.first_chunk + index;
  const S* const keys = static_cast<const S*>(p.rotated_keys) + head * p.capacity * p.head_dim;
  const auto member = [&](int t, int d) { return to_float(keys[(chunk * C + t) % p.capacity * p.head_dim + d]); };
  float mean[kPerLane], stored[kPerLane];
  float mean_squares = 0, largest = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    mean[i] = 0;
    if (d < p.head_dim) {
      for (int t = 0; t < C; ++t) {
        mean[i] += member(t, d);
      }
      mean[i] *= 1.0F / C;
    }
    mean_squares += mean[i] * mean[i];
    largest = fmaxf(largest, fabsf(mean[i]));
  }
  mean_squares = warp_sum(mean_squares);
  const std::int64_t place = head * p.chunk_capacity + chunk;
  const float scale = warp_max(largest) / 127.0F;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    stored[i] = 0;
    if (d >= p.head_dim) {
      continue;
    }
    if constexpr (kBytes) {
      const float level = scale > 0 ? fminf(fmaxf(rintf(mean[i] / scale), -127.0F), 127.0F) : 0.0F;
      static_cast<std::int8_t*>(p.landmarks)[place * p.head_dim + d] = static_cast<std::int8_t>(level);
      stored[i] = level * scale;
    } else {
      const S rounded = from_float<S>(mean[i]);
      static_cast<S*>(p.landmarks)[place * p.head_dim + d] = rounded;
      stored[i] = to_float(rounded);
    }
  }
  float farthest = 0, smallest = 1;
  for (int t = 0; t < C; ++t) {
    float dot = 0, squares = 0, distance = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + 32 * i;
      if (d < p.head_dim) {
        const float x = member(t, d), off = x - stored[i];
        dot += x * mean[i];
        squares += x * x;
        distance += off * off;
      }
    }
    const float cosine = cosine_of(warp_sum(dot), warp_sum(squares), mean_squares);
    smallest = t ? fminf(smallest, cosine) : cosine;
    farthest = fmaxf(farthest, warp_sum(distance));
  }
  if (lane == 0) {
    p.radius[place] = sqrtf(farthest);
    if (p.cosine) {
      p.cosine[place] = smallest;
    }
    if constexpr (kBytes) {
      p.landmark_scales[place] = scale;
    }
  }
}

template <int C, bool kBytes>
void build_chunks(const Several<skv_landmark_build_params>& all, int together, const Launch& launch) {
  const skv_landmark_build_params& p = all.of[0];
  bool wide = p.head_dim % kColumns == 0;
  for (int i = 0; i < together; ++i) {
    wide &= aligned_16({all.of[i].rotated_keys, all.of[i].landmarks}, {});
  }
  const auto run = [&](auto kernel, int lanes) {
    const dim3 grid(blocks_for(p.chunks * lanes, kThreads), static_cast<unsigned>(p.key_value_heads),
                    static_cast<unsigned>(together));
    launch_kernel("landmark_build", kernel, grid, dim3(kThreads), 0, launch.stream, all);
  };
  if (!wide) {
    run(any_head_dim_kernel<C, kBytes>, 32);
  } else if (p.head_dim <= 8 * kColumns) {
    run(landmark_build_kernel<8, C, kBytes>, 8);
  } else if (p.head_dim <= 16 * kColumns) {
    run(landmark_build_kernel<16, C, kBytes>, 16);
  } else {
    run(landmark_build_kernel<32, C, kBytes>, 32);
  }
}

// Calls that differ in addresses alone.
void build(const Several<skv_landmark_build_params>& all, int together, const Launch& launch) {
  const skv_landmark_build_params& p = all.of[0];
  require_bf16(p.storage_type, "landmark_build", "the storage type");
  if (p.landmark_type != SKV_I8) {
    require_bf16(p.landmark_type, "landmark_build", "the landmark type, unless I8,");
  }
  if (p.chunk != 8 && p.chunk != 16) {
    throw Error(SKV_UNSUPPORTED, "landmark_build takes chunks of 8 or 16 tokens, not " + std::to_string(p.chunk));
  }
  if (p.chunks == 0) {
    return;
  }
  const bool bytes = p.landmark_type == SKV_I8;
  if (p.chunk == 8) {
    bytes ? build_chunks<8, true>(all, together, launch) : build_chunks<8, false>(all, together, launch);
  } else {
    bytes ? build_chunks<16, true>(all, together, launch) : build_chunks<16, false>(all, together, launch);
  }
}

}  // namespace

std::uint64_t landmark_build_workspace(const skv_landmark_build_params&, const DeviceTraits&) {
  return 0;
}

void landmark_build_each(const skv_landmark_build_params* all, int count, Launch& launch) {
  using P = skv_landmark_build_params;
  const auto alike = [](const P& a, const P& b) {
    return alike_but_for(a, b, &P::rotated_keys, &P::landmarks, &P::landmark_scales, &P::radius, &P::cosine);
  };
  in_groups(all, count, alike, [&](const Several<P>& group, int together) { build(group, together, launch); });
}

void landmark_build(const skv_landmark_build_params& p, Launch& launch) {
  build(only(p), 1, launch);
}

}  // namespace skv::cuda
