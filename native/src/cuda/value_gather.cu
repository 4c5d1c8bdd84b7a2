#include <algorithm>

#include "cuda/decode.h"
#include "cuda/mma.cuh"
#include "cuda/select_best.cuh"
#include "cuda/value_chunks.cuh"
#include "value_types.h"

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
  int elements;      // of a chunk of one head
  int source_bytes;  // of a chunk in host memory
  int target_bytes;  // of a chunk in a slot
  FetchOrder order;
};

// Brings the chunks of fetch lists from pinned host memory into slots.
//
// values [K][chunk_capacity][C][D] host -> slot_values [K][slots][C][D], unpacked. Floor: the missing bytes over the
// link (C * D elements of 16, 12, 8 or 6 bits a chunk); bound by the link, and with six bits by the 52 million places a
// second that the host gives. The lists are taken head by head, ascending, by all warps side by side, kTogether
// neighbours a warp: what an SM asks for at a time lies within a few pages (docs/decisions.md). A warp has kTogether
// chunks in flight. Reached for 33 sessions by 16 blocks: 50.7 GB/s with 16 and 12 bits, 49.4 with 8, 39.5 with 6,
// where copies run at 55.4 (H200, 2026-11-29, bench_cuda_decode). A fetch that continues another asks while the other's
// last chunks are under way, so that the link never runs empty.
template <class Moved, int kTogether>
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
  const int me = static_cast<int>(blockIdx.x) * kGatherWarps + warp;
  const int heads = p.geometry.key_value_heads;
  int done = 0;  // runs of earlier batches of pairs, modulo the number of warps
  for (int batch = 0; batch < q.pairs; batch += 32) {
    const int mine = batch + lane;
    const int count = mine < q.pairs ? min(p.fetch_count[q.first_pair + mine], p.select) : 0;
    const int through = warp_prefix(count, lane);
    const int total = __shfl_sync(0xffffffffU, through, 31);
    const int runs = (total + kTogether - 1) / kTogether;
    for (int run = (me - done + warps) % warps; run < runs; run += warps) {
      const int entry = run * kTogether;
      ValueChunk chunks[kTogether];
      int entries = 0;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int e = entry + i;
        const bool present = e < total;
        const int which = __popc(__ballot_sync(0xffffffffU, through <= (present ? e : entry)));
        const int before = __shfl_sync(0xffffffffU, through - count, which);
        if (present) {
          const int pair = q.first_pair + batch + which;
          const int session = pair / heads, head = pair % heads;
          const std::int64_t at = static_cast<std::int64_t>(pair) * p.select + e - before;
          const std::int64_t chunk = p.fetch_chunk[at], slot = p.fetch_slot[at];
          const skv_shadow_layer& layer = p.layers[session];
          const std::int64_t from = head * layer.chunk_capacity + chunk;
          const std::int64_t to = static_cast<std::int64_t>(head) * p.geometry.slots + slot;
          chunks[i] = {static_cast<const unsigned char*>(layer.values) + from * q.source_bytes,
                       static_cast<unsigned char*>(layer.slot_values) + to * q.target_bytes,
                       Moved::kScaled ? layer.value_scales[from] : 1.0F, q.elements};
          entries = i + 1;
        } else {
          chunks[i] = {};
        }
      }
      Moved moved[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (i < entries) {
          moved[i].ask(chunks[i], lane);
        }
      }
      if (q.order.holds_next && run + warps >= runs) {
        let_next_begin();
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (i < entries) {
          moved[i].put(chunks[i], q.source_bytes, lane);
        }
      }
    }
    done = (done + runs) % warps;
  }
}

// C is 8 or 16 and D even, so that a chunk is always whole 16-byte words.
template <class Launch>
void launch_copying(int bytes, Launch&& launch) {
  switch (bytes) {
    case 512:
      return launch(value_gather_kernel<CopiedChunk<1>, 4>);
    case 1024:
      return launch(value_gather_kernel<CopiedChunk<2>, 4>);
    case 1536:
      return launch(value_gather_kernel<CopiedChunk<3>, 2>);
    case 2048:
      return launch(value_gather_kernel<CopiedChunk<4>, 2>);
    case 4096:
      return launch(value_gather_kernel<CopiedChunk<8>, 1>);
    default:
      return launch(value_gather_kernel<CopiedChunk<0>, 1>);
  }
}

// Format<2> takes eight elements of each part, Format<1> four: chunks of a head dim that is no multiple of four have
// not always eight. kPieces a lane make 1024 elements.
template <template <int> class Format, int kPieces, int kTogether, class Launch>
void launch_unpacking(int elements, Launch&& launch) {
  constexpr int kAligned = 32, kUsual = 1024;
  if (elements % kAligned != 0) {
    return launch(value_gather_kernel<UnpackedChunk<Format<1>, 0>, 1>);
  }
  if (elements <= kUsual) {
    return launch(value_gather_kernel<UnpackedChunk<Format<2>, kPieces>, kTogether>);
  }
  if (elements <= 2 * kUsual) {
    return launch(value_gather_kernel<UnpackedChunk<Format<2>, 2 * kPieces>, kTogether / 2>);
  }
  launch(value_gather_kernel<UnpackedChunk<Format<2>, 0>, 1>);
}

}  // namespace

void launch_value_gather(const skv_value_gather_params& p, PairRange pairs, FetchOrder order, cudaStream_t stream) {
  if (pairs.count == 0 || p.geometry.slots == 0) {
    return;
  }
  const std::int32_t type = p.geometry.value_type;
  GatherParams q = {p, pairs.first, pairs.count, p.geometry.chunk * p.geometry.head_dim, 0, 0, order};
  q.source_bytes = static_cast<int>(value_bytes(type, q.elements));
  q.target_bytes = static_cast<int>(value_bytes(slot_type(type), q.elements));
  const dim3 grid(static_cast<unsigned>(p.blocks > 0 ? p.blocks : kDefaultBlocks)), block(kGatherThreads);
  const auto launch = [&](auto kernel) {
    launch_beside("value gather", Beside{.early = order.early || order.continues}, kernel, grid, block, 0, stream, q);
  };
  if (type == SKV_F12_E4M7) {
    launch_unpacking<TwelveBitPiece, 2, 2>(q.elements, launch);
  } else if (type == SKV_F6_E2M3) {
    launch_unpacking<SixBitPiece, 1, 4>(q.elements, launch);
  } else {
    launch_copying(q.source_bytes, launch);
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
