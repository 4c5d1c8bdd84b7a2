#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 128;

// One chunk of one head a block, row by row, since a ring may wrap inside of it.
//
// source [K][capacity][D], ids [K][count] -> target [K][target_capacity][C][D]. Floor: one read, one write of
// count chunks a head; bound by memory.
template <class Word>
__global__ void __launch_bounds__(kThreads) chunk_gather_kernel(const __grid_constant__ skv_chunk_gather_params p,
                                                                int row_words) {
  const std::int64_t head = blockIdx.y, place = blockIdx.x;
  const std::int64_t chunk = p.ids[head * p.count + place];
  const Word* const source = static_cast<const Word*>(p.source) + head * p.capacity * row_words;
  Word* const target = static_cast<Word*>(p.target) +
                       (head * p.target_capacity + p.target_first + place) * p.chunk * row_words;
  for (int i = static_cast<int>(threadIdx.x); i < p.chunk * row_words; i += kThreads) {
    const std::int64_t row = (chunk * p.chunk + i / row_words) % p.capacity;
    target[i] = source[row * row_words + i % row_words];
  }
}

}  // namespace

std::uint64_t chunk_gather_workspace(const skv_chunk_gather_params&, const DeviceTraits&) { return 0; }

void chunk_gather(const skv_chunk_gather_params& p, Launch& launch) {
  if (p.count == 0) {
    return;
  }
  const std::int64_t row_bytes = p.head_dim * element_bytes(p.type);
  const auto run = [&]<class Word>(Type<Word>) {
    launch_kernel("chunk_gather", chunk_gather_kernel<Word>,
                  dim3(static_cast<unsigned>(p.count), static_cast<unsigned>(p.key_value_heads)), dim3(kThreads), 0,
                  launch.stream, p, static_cast<int>(row_bytes / static_cast<std::int64_t>(sizeof(Word))));
  };
  if (aligned_16({p.source, p.target}, {row_bytes})) {
    run(Type<uint4>{});
  } else if (row_bytes % 4 == 0) {
    run(Type<std::uint32_t>{});
  } else {
    run(Type<std::uint16_t>{});
  }
}

}  // namespace skv::cuda
