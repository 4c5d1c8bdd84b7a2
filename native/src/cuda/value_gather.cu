#include <algorithm>

#include "cuda/decode.h"
#include "cuda/mma.cuh"
#include "cuda/select_best.cuh"

namespace skv::cuda {
namespace {

// Few, so that a block finds room beside those of the logits and of attention.
constexpr int kGatherThreads = 256;
constexpr int kGatherWarps = kGatherThreads / 32;
// Already this few blocks ask for as much as the link delivers; the other SMs stay with the other sessions.
constexpr int kDefaultBlocks = 16;

struct GatherParams {
  skv_value_gather_params p;
  int first_pair;
  int pairs;
  std::int64_t chunk_vectors;  // 16-byte words of a chunk of one head
  FetchOrder order;
};

// Reads that pass by the caches of the SM: host memory is read once, and may have changed since the last step.
__device__ uint4 load_host_16(const void* host) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(host));
  return v;
}

// Copies the chunks of fetch lists from pinned host memory into slots.
//
// values [K][chunk_capacity][C][D] host -> slot_values [K][slots][C][D]. Floor: the missing bytes over the link
// (C * D * 2 or 1 bytes a chunk); bound by the link. The lists are taken head by head, ascending, by all warps
// side by side, so that neighbouring requests are neighbours in host memory; a warp has kTogether chunks in flight.
// Reached: 50.0 GB/s at 2 KB a chunk, 48.4 at 1 KB, where copies run at 55.4 (H200, 2026-11-24, bench_cuda_decode).
// A fetch that continues another asks while the other's last chunks are under way, so that the link never runs empty.
template <int kVectors, int kTogether>
__global__ void __launch_bounds__(kGatherThreads) value_gather_kernel(const __grid_constant__ GatherParams q) {
  if (!q.order.continues) {
    wait_for_earlier();
  }
  if (!q.order.holds_next) {
    let_next_begin();
  }
  const skv_value_gather_params& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(gridDim.x) * kGatherWarps;
  // Neighbouring entries go to different blocks.
  const int me = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  const int heads = p.geometry.key_value_heads;
  int done = 0;  // entries of earlier batches of pairs, modulo the number of warps
  for (int batch = 0; batch < q.pairs; batch += 32) {
    const int mine = batch + lane;
    const int count = mine < q.pairs ? min(p.fetch_count[q.first_pair + mine], p.select) : 0;
    const int through = warp_prefix(count, lane);
    const int total = __shfl_sync(0xffffffffU, through, 31);
    for (int entry = (me - done + warps) % warps; entry < total; entry += kTogether * warps) {
      const uint4* source[kTogether];
      uint4* target[kTogether];
      int entries = 0;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int e = entry + i * warps;
        const bool present = e < total;
        const int which = __popc(__ballot_sync(0xffffffffU, through <= (present ? e : entry)));
        const int before = __shfl_sync(0xffffffffU, through - count, which);
        if (present) {
          const int pair = q.first_pair + batch + which;
          const int session = pair / heads, head = pair % heads;
          const std::int64_t at = static_cast<std::int64_t>(pair) * p.select + e - before;
          const std::int64_t chunk = p.fetch_chunk[at], slot = p.fetch_slot[at];
          const skv_shadow_layer& layer = p.layers[session];
          source[i] = static_cast<const uint4*>(layer.values) + (head * layer.chunk_capacity + chunk) * q.chunk_vectors;
          target[i] = static_cast<uint4*>(layer.slot_values) +
                      (static_cast<std::int64_t>(head) * p.geometry.slots + slot) * q.chunk_vectors;
          entries = i + 1;
        } else {
          source[i] = nullptr;
          target[i] = nullptr;
        }
      }
      if constexpr (kVectors > 0) {
        uint4 data[kTogether][kVectors];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (i < entries) {
#pragma unroll
            for (int v = 0; v < kVectors; ++v) {
              data[i][v] = load_host_16(source[i] + v * 32 + lane);
            }
          }
        }
        if (q.order.holds_next && entry + kTogether * warps >= total) {
          let_next_begin();
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (i < entries) {
#pragma unroll
            for (int v = 0; v < kVectors; ++v) {
              target[i][v * 32 + lane] = data[i][v];
            }
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (i < entries) {
            for (std::int64_t v = lane; v < q.chunk_vectors; v += 32) {
              target[i][v] = load_host_16(source[i] + v);
            }
          }
        }
      }
    }
    done = (done + total) % warps;
  }
}

}  // namespace

void launch_value_gather(const skv_value_gather_params& p, PairRange pairs, FetchOrder order, cudaStream_t stream) {
  if (pairs.count == 0 || p.geometry.slots == 0) {
    return;
  }
  GatherParams q = {p, pairs.first, pairs.count, 0, order};
  // C is 8 or 16 and D even, so that a chunk is always whole 16-byte words.
  q.chunk_vectors = static_cast<std::int64_t>(p.geometry.chunk) * p.geometry.head_dim *
                    (p.geometry.value_type == SKV_F8_E4M3 ? 1 : 2) / 16;
  const dim3 grid(static_cast<unsigned>(p.blocks > 0 ? p.blocks : kDefaultBlocks)), block(kGatherThreads);
  const auto launch = [&](auto kernel) {
    launch_beside("value gather", Beside{.early = order.early || order.continues}, kernel, grid, block, 0, stream, q);
  };
  switch (q.chunk_vectors) {
    case 32:
      return launch(value_gather_kernel<1, 4>);
    case 64:
      return launch(value_gather_kernel<2, 4>);
    case 96:
      return launch(value_gather_kernel<3, 2>);
    case 128:
      return launch(value_gather_kernel<4, 2>);
    case 256:
      return launch(value_gather_kernel<8, 1>);
    default:
      return launch(value_gather_kernel<0, 1>);
  }
}

std::uint64_t value_gather_workspace(const skv_value_gather_params&, const DeviceTraits&) {
  return 0;
}

void value_gather(const skv_value_gather_params& p, Launch& launch) {
  check_shadow_geometry(p.geometry, SKV_F32, "value_gather");
  launch_value_gather(p, all_pairs(p.batch, p.geometry), {}, launch.stream);
}

}  // namespace skv::cuda
