// Selection by clusters of blocks (sm_90 and later): the logits of a pair's landmarks stay in the shared memory of its
// cluster, which also finds the threshold, lists the chosen chunks and plans their slots.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "cuda/cluster_select.cuh"
#include "cuda/decode.h"

namespace skv::cuda {

using namespace cluster;

namespace {

// Selects the chunks of a pair and, when asked, plans their slots. One cluster a pair.
//
// landmarks [K][chunk_capacity][D] bf16 or int8 -> selected [S], count, mass (+ slots and fetch list).
// Floor: every landmark read once: B * K * chunks * D * (2 or 1) bytes; bound by memory. Before it 6 to 9 us until the
// queries are fragments, mostly the chain of loads from the session tables to the landmarks; the slots are put in order
// meanwhile. Behind it three barriers of the cluster, 8 us: merging partial softmaxes 2, scores and their bins 2,
// threshold 3, marks and list 2; a plan takes 1 more (globaltimer, one session, int8). Reached, with the plan's part
// left out: 0.082 ms bf16, 0.057 ms int8, floors 0.061 and 0.031 (H200, 2026-11-29, bench_cuda_decode, 8 sessions of
// 122880 tokens, 32/8 heads, D 128); one session about 0.027 with the plan, floor 0.008.
template <int kHeadDim, bool kInt8, bool kWide>
__global__ void __launch_bounds__(kThreads, 1) landmark_cluster_kernel(const __grid_constant__ ClusterParams q) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  const cg::cluster_group cluster = cg::this_cluster();
  const skv_landmark_topk_params& p = q.p;
  const int thread = static_cast<int>(threadIdx.x);
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.y);
  const int session = pair / heads, head = pair % heads;
  // Both tables are read at once, and what they name is on its way before anything waits.
  const skv_shadow_layer& layer = p.layers[session];
  asm volatile("prefetch.global.L2 [%0];" ::"l"(&layer.landmarks));
  asm volatile("prefetch.global.L2 [%0];" ::"l"(&layer.chunk_capacity));
  const int chunks = indexed_chunks(p, session);
  const int rank = static_cast<int>(cluster.block_rank());
  let_next_begin();
  if (chunks == 0) {
    wait_for_earlier();
    if (p.tail && rank == 0 && thread < q.group) {
      p.tail[static_cast<std::int64_t>(pair) * q.group + thread] = -INFINITY;
    }
    if (thread == 0 && rank == 0) {
      p.selected_count[pair] = 0;
      if (p.mass) {
        p.mass[pair] = 0.0F;
      }
      if (q.plan.fetch_count) {
        q.plan.fetch_count[pair] = 0;
      }
    }
    return;
  }
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  const ClusterLayout& layout = q.layout;
  const Share share = share_of(chunks, rank, static_cast<int>(cluster.num_blocks()));
  auto* const logits = reinterpret_cast<float*>(shared + layout.logits);
  auto* const scores = reinterpret_cast<float*>(shared + layout.scores);
  auto* const bins = reinterpret_cast<unsigned*>(shared + layout.bins);
  if (thread == 0) {
    memory.candidate_count = 0;
    memory.mass = 0;
  }
  const bool lists = cluster.block_rank() == planner(cluster), plans = lists && q.plan.fetch_count;
  const std::int64_t slot_row = static_cast<std::int64_t>(head) * p.geometry.slots;
  const SlotOrder<kThreads> slots(layer.slot_chunk + slot_row, layer.slot_stamp + slot_row,
                                  plans ? p.geometry.slots : 0);
  stream_landmarks<kHeadDim, kInt8, kWide>(q, layout, share, session, head, shared, [&] {
    if (plans) {
      slots.sort(plan_memory_of(layout, shared));
    }
  });
  __syncthreads();
  merge_warps(share.units * q.group, q.group, partials_of(layout, false, shared));
  if (p.tail) {
    merge_warps(share.units * q.group, q.group, partials_of(layout, true, shared));
  }
  for (int i = thread; i < kBins / 2; i += kThreads) {
    bins[i] = 0;
  }
  cluster.sync();

  log_sums(q, share, pair, shared);
  float high = -INFINITY;
  for (int g = 0; g < q.group; ++g) {
    high = fmaxf(high, memory.largest[g]);
  }
  // Four neighbouring chunks a thread. Rows hold -infinity or nothing behind the last chunk.
  for (int i = 4 * thread; i < share.count; i += 4 * kThreads) {
    float score[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
#pragma unroll 4
    for (int g = 0; g < q.group; ++g) {
      const float4 x = *reinterpret_cast<const float4*>(logits + g * layout.stride + i);
      const float log_sum = memory.log_sums[g];
      // Adding +0 turns -0 into +0; fmaxf drops NaN.
      score[0] = fmaxf(score[0], x.x - log_sum + 0.0F);
      score[1] = fmaxf(score[1], x.y - log_sum + 0.0F);
      score[2] = fmaxf(score[2], x.z - log_sum + 0.0F);
      score[3] = fmaxf(score[3], x.w - log_sum + 0.0F);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i + e >= share.count) {
        score[e] = -INFINITY;
      } else if (score[e] > -INFINITY) {
        const int bin = bin_of(score[e], high);
        atomicAdd(&bins[bin / 2], bin % 2 ? 0x10000U : 1U);
      }
    }
    *reinterpret_cast<float4*>(scores + i) = make_float4(score[0], score[1], score[2], score[3]);
  }
  cluster.sync();

  find_threshold(layout, p.select, shared);
  // The share of the softmax that a chunk holds which is listed, or may be.
  const auto mass_of = [&](int i) -> unsigned long long {
    if (!p.mass) {
      return 0;
    }
    float mass = 0;
    for (int g = 0; g < q.group; ++g) {
      mass += exp2_fast((logits[g * layout.stride + i] - memory.log_sums[g]) * kLog2E);
    }
    return static_cast<unsigned long long>(mass * 0x1p40F);
  };
  unsigned long long mass = 0;
  if (memory.members <= kCandidates) {
    mass = mark_chunks(layout, share, high, mass_of, shared);
  } else {
    float threshold = 0;
    const int equals = crowded_threshold(layout, share.count, high, p.select, shared, threshold);
    mass = mark_above(layout, share, threshold, equals, mass_of, shared);
  }
  if (p.mass) {
    add_mass(mass, shared);
  }
  cluster.sync();
  if (lists) {
    list_and_plan(q, layout, chunks, pair, session, head, shared);
  }
  // Not earlier: the barrier would wait for these writes.
  if (q.listed_logits) {
    tell_logits(q, share, pair, high, shared);
  }
#endif
}

// How a pair is split. 0 blocks: not at all.
struct ClusterShape {
  int blocks = 0;  // of a cluster
  int stages = 0;  // steps of a warp that are under way
  ClusterLayout layout;
};

// As many blocks as let all pairs of the launch run at the same time, but at least as many as hold a pair's logits.
ClusterShape cluster_shape(const skv_landmark_topk_params& p, bool tail, const DeviceTraits& traits, int pairs) {
  const std::int64_t units = std::max<std::int64_t>(1, (p.max_chunks + kUnit - 1) / kUnit);
  constexpr std::int64_t kMostShare = 16384;  // what 16-bit counts and the arithmetic of a layout take by far
  ClusterShape best;
  for (int blocks = 1; blocks <= DeviceTraits::kMostClusterBlocks; ++blocks) {
    const std::int64_t share = (units + blocks - 1) / blocks * kUnit;
    if (share > kMostShare || traits.clusters[blocks] == 0 || (best.blocks > 0 && traits.clusters[blocks] < pairs)) {
      continue;
    }
    for (int stages = kMostStages; stages >= 1; --stages) {
      const ClusterLayout layout =
          cluster_layout(static_cast<int>(share), stages, group_size(p.geometry), p.geometry.head_dim,
                         p.geometry.landmark_type == SKV_I8, tail, p.max_chunks, p.select, p.geometry.slots);
      if (layout.end <= traits.shared_memory_per_block) {
        best = {blocks, stages, layout};
        break;
      }
    }
  }
  return best;
}

template <int kHeadDim>
auto cluster_kernel(bool int8, bool wide) {
  return int8 ? (wide ? landmark_cluster_kernel<kHeadDim, true, true> : landmark_cluster_kernel<kHeadDim, true, false>)
              : (wide ? landmark_cluster_kernel<kHeadDim, false, true>
                      : landmark_cluster_kernel<kHeadDim, false, false>);
}

}  // namespace

void count_clusters(DeviceTraits& traits) {
  // For tests: clusters of at most that many blocks; 0: as on a GPU without clusters.
  const char* const wanted = std::getenv("SHADOWKV_CLUSTERS");
  const int most =
      std::min(wanted ? std::atoi(wanted) : DeviceTraits::kMostClusterBlocks, DeviceTraits::kMostClusterBlocks);
  if (traits.compute_major < 9) {
    return;
  }
  const auto kernel = cluster_kernel<128>(false, false);
  const int bytes = traits.shared_memory_per_block;
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for shared memory");
  for (int blocks = 1; blocks <= most; ++blocks) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(traits.multiprocessors));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    config.attrs = &cluster;
    config.numAttrs = 1;
    check(cudaOccupancyMaxActiveClusters(&traits.clusters[blocks], kernel, &config), "counting clusters of blocks");
  }
}

bool selects_in_clusters(const skv_landmark_topk_params& p, const DeviceTraits& traits) {
  const int dim = p.geometry.head_dim;
  // With a tail, since who asks may not have its address yet.
  return (dim == 64 || dim == 96 || dim == 128) &&
         cluster_shape(p, true, traits, p.batch * p.geometry.key_value_heads).blocks > 0;
}

void launch_landmark_cluster(const skv_landmark_topk_params& p, const SelectionScratch& scratch, const PlanOutput& plan,
                             const DeviceTraits& traits, PairRange pairs, int at_once, bool early, cudaEvent_t begun,
                             cudaStream_t stream) {
  const ClusterShape shape = cluster_shape(p, p.tail != nullptr, traits, at_once);
  const ClusterParams q = {
      p, plan, shape.layout, pairs.first, group_size(p.geometry), shape.stages, scratch.logits, scratch.chunk_stride};
  const bool int8 = p.geometry.landmark_type == SKV_I8, wide = q.group > 8;
  const int dim = p.geometry.head_dim;
  const auto kernel = dim == 64   ? cluster_kernel<64>(int8, wide)
                      : dim == 96 ? cluster_kernel<96>(int8, wide)
                                  : cluster_kernel<128>(int8, wide);
  launch_beside("landmark selection", Beside{.cluster = shape.blocks, .early = early, .begun = begun}, kernel,
                dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(pairs.count)), dim3(kThreads),
                static_cast<std::size_t>(shape.layout.end), stream, q);
}

}  // namespace skv::cuda
