// The stages of a decode step, each over a range of (session, key/value head) pairs. The operations of the
// ABI run a stage over all pairs; decode_layer runs them over parts of the batch that overlap in time. What a
// stage computes for a pair depends on that pair alone, bit for bit: neither on its batch nor on the range.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

#include "cuda/launch.h"
#include "shadowkv_types.h"

namespace skv::cuda {

// How a kernel stands to those beside it.
struct Beside {
  int cluster = 1;     // blocks of a cluster, along x
  bool early = false;  // begins when the launch before it on the stream lets it; awaits its end by wait_for_earlier()
  cudaEvent_t begun = nullptr;  // recorded when all its blocks have begun
};

// launch_kernel for kernels that run side by side on several streams. An SM splits its memory between L1 cache and
// shared memory anew only when it is empty, so kernels that prefer different splits wait for each other: all ask for
// the largest shared memory.
template <class... Parameters, class... Arguments>
void launch_beside(const char* name, const Beside& beside, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   std::size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  if (shared_bytes > kSharedWithoutAsking) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  }
  cudaLaunchAttribute attributes[4] = {};
  unsigned count = 0;
  attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[count++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  if (beside.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(beside.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  if (beside.early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (beside.begun) {
    attributes[count].id = cudaLaunchAttributeLaunchCompletionEvent;
    attributes[count++].val.launchCompletionEvent = {beside.begun, 0};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  // Arguments are converted to the kernel's own types first: the driver copies raw bytes of those.
  auto launch = [&](Parameters... converted) {
    void* pointers[] = {static_cast<void*>(&converted)..., nullptr};
    return cudaLaunchKernelExC(&config, function, pointers);
  };
  check(launch(std::forward<Arguments>(arguments)...), name);
}

template <class... Parameters, class... Arguments>
void launch_beside(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  launch_beside(name, Beside{}, kernel, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

// Pairs are numbered session * K + head.
struct PairRange {
  int first = 0;
  int count = 0;
  int end() const { return first + count; }
};

inline PairRange all_pairs(std::int32_t batch, const skv_geometry& geometry) {
  return {0, batch * geometry.key_value_heads};
}

inline int group_size(const skv_geometry& geometry) {
  return geometry.query_heads / geometry.key_value_heads;
}

// Chunks selected for rerank may outnumber what attention takes.
constexpr int kMaxShortlist = 4096;

// Throws UNSUPPORTED with the limits for shapes and types that these kernels do not take.
void check_attention_geometry(const skv_geometry& geometry, std::int32_t query_type, const char* operation);
void check_shadow_geometry(const skv_geometry& geometry, std::int32_t query_type, const char* operation);

// --- Selection --------------------------------------------------------------------------------

// Of the path through device memory: chunks of which one warp makes one partial softmax. Fixed, so that a result does
// not depend on the launch.
constexpr int kSelectionUnit = 64;

// Null where clusters of blocks keep this to themselves.
struct SelectionScratch {
  float* logits = nullptr;     // [B*K][G][chunk_stride]; of clusters those of the listed chunks, and only for a tail
  float2* partials = nullptr;  // [B*K][G][units]: largest logit and sum of exponentials of a unit of chunks
  float2* plain = nullptr;     // [B*K][G][units]: the same of logits without what radii add
  float* scores = nullptr;     // [B*K][chunk_stride], only when a row does not fit in shared memory
  std::int64_t chunk_stride = 0;
  std::int64_t units = 0;
};

// tail: whether the weight of what is not selected will be asked for.
std::uint64_t selection_scratch_bytes(const skv_landmark_topk_params& p, const DeviceTraits& traits, bool tail);
SelectionScratch take_selection_scratch(const skv_landmark_topk_params& p, const DeviceTraits& traits, bool tail,
                                        Workspace& workspace);

// Where a selection is turned into a cache plan by the same kernel; all null when it is not.
struct PlanOutput {
  std::int32_t* selected_slot = nullptr;
  std::int32_t* fetch_chunk = nullptr;
  std::int32_t* fetch_slot = nullptr;
  std::int32_t* fetch_count = nullptr;
};

// at_once: pairs that are selected at the same time, these among them. early: the launch before this one on the stream
// makes the queries and nothing else that is read here. begun: null, or recorded when another selection can begin
// without taking this one's place. p.tail gets the weight of all indexed tokens,
// those selected included: launch_tail takes these off.
void launch_selection(const skv_landmark_topk_params& p, const SelectionScratch& scratch, const PlanOutput& plan,
                      const DeviceTraits& traits, PairRange pairs, int at_once, bool early, cudaEvent_t begun,
                      cudaStream_t stream);

// Its parts: all at once by clusters of blocks, where the GPU has them and the index of a pair fits in one, or by way
// of logits in device memory.
[[gnu::visibility("default")]] void count_clusters(DeviceTraits& traits);  // when a context is made
bool selects_in_clusters(const skv_landmark_topk_params& p, const DeviceTraits& traits);
void launch_landmark_cluster(const skv_landmark_topk_params& p, const SelectionScratch& scratch, const PlanOutput& plan,
                             const DeviceTraits& traits, PairRange pairs, int at_once, bool early, cudaEvent_t begun,
                             cudaStream_t stream);
void launch_landmark_logits(const skv_landmark_topk_params& p, const SelectionScratch& scratch,
                            const DeviceTraits& traits, PairRange pairs, cudaStream_t stream);

struct RerankScratch {
  float* chunk_mass = nullptr;     // [B*K][G][shortlist_stride]: log2 of a chunk's summed exponentials
  float* scores = nullptr;         // [B*K][G][shortlist_stride*C]: log2 of a token's exponential, or null
  std::int32_t* places = nullptr;  // [B*K][select]: where in the shortlist a selected chunk is
};

// scores: whether those of tokens will be wanted.
std::uint64_t rerank_scratch_bytes(const skv_rerank_params& p, bool scores);
RerankScratch take_rerank_scratch(const skv_rerank_params& p, bool scores, Workspace& workspace);
void launch_rerank(const skv_rerank_params& p, const RerankScratch& scratch, const PlanOutput& plan,
                   const DeviceTraits& traits, PairRange pairs, cudaStream_t stream);

// Its masses by pipelines of tiles; false: not for this device or geometry, and nothing was launched.
bool launch_rerank_tiles(const skv_rerank_params& p, const RerankScratch& scratch, const DeviceTraits& traits,
                         PairRange pairs, cudaStream_t stream);

// How a fetch stands to the launches before and behind it on its stream.
struct FetchOrder {
  bool early = false;       // the one before makes its lists
  bool continues = false;   // the one before is another fetch, begun when these lists were there already
  bool holds_next = false;  // the one behind begins when all blocks have asked for their last chunks, not at once
};

void launch_value_gather(const skv_value_gather_params& p, PairRange pairs, FetchOrder order, cudaStream_t stream);

// --- Attention --------------------------------------------------------------------------------

// Attention in parts: [pairs][splits][G] of (largest score in log2 units, sum of exponentials) and the
// unnormalised sums of values [pairs][splits][G][D].
struct AttentionPartials {
  float2* statistics = nullptr;
  float* sums = nullptr;
  int splits = 0;
  int tails = 0;  // of the splits, the last ones, which are not launch_sparse_attention's
};

std::uint64_t attention_partials_bytes(std::int64_t pairs, int splits, const skv_geometry& geometry);
AttentionPartials take_attention_partials(std::int64_t pairs, int splits, const skv_geometry& geometry,
                                          Workspace& workspace);

// How the tokens of a pair are dealt to parts; the same for every launch.
struct AttentionParts {
  int tokens = 0;    // of a part
  int selected = 0;  // parts of selected tokens, which come first
  int stored = 0;    // parts of outliers and recent tokens: every stored-th run of `tokens` tokens each
  int total() const { return selected + stored; }
};

// scored: for launches with the scores of a rerank.
AttentionParts attention_parts(const skv_geometry& geometry, const skv_rope& rope, std::int32_t select, bool scored,
                               const DeviceTraits& traits);
// Scores of the selected tokens that a rerank has left: then no key is rebuilt again. All null: there are none.
struct GivenScores {
  const float* scores = nullptr;         // as in RerankScratch
  const std::int32_t* places = nullptr;  // as in RerankScratch
  std::int64_t stride = 0;               // tokens of a row of scores
};

// beside_fetch: the launch before this one on the stream is the fetch of the pairs' values; everything that does not
// need them is done beside it.
// partials has the parts of attention_parts, then the tails.
void launch_sparse_attention(const skv_sparse_attention_params& p, const GivenScores& given,
                             const AttentionPartials& partials, const DeviceTraits& traits, PairRange pairs,
                             bool beside_fetch, cudaStream_t stream);

// Its path by pipelines of tiles, for devices and shapes that tile_pipelines() has pipelines for; not with given
// scores.
void launch_attention_tiles(const skv_sparse_attention_params& p, const AttentionParts& parts,
                            const AttentionPartials& partials, const DeviceTraits& traits, PairRange pairs,
                            bool beside_fetch, cudaStream_t stream);
[[gnu::visibility("default")]] void find_warpgroups(DeviceTraits& traits);  // when a context is made

// What a selection leaves out: the weight of those tokens, and their part of the attention.
struct TailParams {
  skv_geometry geometry = {};
  std::int32_t query_type = 0;
  const void* queries = nullptr;  // [B][H][D] rotated
  const skv_shadow_layer* layers = nullptr;
  const skv_session_state* states = nullptr;
  float* weight = nullptr;  // [B][H], natural log; changed in place
  // Given: `weight` is that of all landmarks, and the listed chunks, whose logits these are, are to be taken off.
  const float* logits = nullptr;  // [B*K][G][chunk_stride]
  std::int64_t chunk_stride = 0;
  float radius_weight = 0;                     // that is in the logits
  const std::int32_t* listed = nullptr;        // [B*K][listed_stride], ascending
  const std::int32_t* listed_count = nullptr;  // [B*K]
  int listed_stride = 0;
  // Given: the listed chunks that are not selected are to be added with their exact weight.
  const float* chunk_mass = nullptr;     // [B*K][G][listed_stride], log2
  const std::int32_t* places = nullptr;  // [B*K][select]: where in the list a selected chunk is
  const std::int32_t* selected_count = nullptr;
  int select = 0;
  bool predicted = false;      // ... except in layers with a value basis, where they are a part of their own
  AttentionPartials partials;  // where the part goes; null: nowhere
  int split = 0;               // which of the parts it is
};

// The weight of what `selection` leaves out, once launch_selection has made it with `scratch`.
TailParams tail_of(const skv_landmark_topk_params& selection, const SelectionScratch& scratch);
// The same, with what `rerank` drops of it.
void add_dropped(TailParams& tail, const skv_rerank_params& rerank, const RerankScratch& scratch);
void launch_tail(const TailParams& p, PairRange pairs, cudaStream_t stream);

constexpr int kDroppedTokens = 256;  // of a shortlist that make one part of a sum

struct DroppedScratch {
  float2* statistics = nullptr;  // [B*K][units][G]: largest log2 score, and the sum of exponentials relative to it
  float* sums = nullptr;         // [B*K][units][G][r]: of coefficients by these
  int units = 0;
};

std::uint64_t dropped_scratch_bytes(const skv_rerank_params& p);
DroppedScratch take_dropped_scratch(const skv_rerank_params& p, Workspace& workspace);

// Tokens that a rerank drops, of layers with a value basis: their weight and value, and their part of the attention.
struct DroppedParams {
  skv_geometry geometry = {};
  const skv_shadow_layer* layers = nullptr;
  const skv_session_state* states = nullptr;
  const std::int32_t* listed = nullptr;        // [B*K][listed_stride], ascending
  const std::int32_t* listed_count = nullptr;  // [B*K]
  int listed_stride = 0;
  const float* scores = nullptr;           // [B*K][G][listed_stride*C], log2
  const std::int32_t* selected = nullptr;  // [B*K][select], ascending
  const std::int32_t* places = nullptr;    // [B*K][select], ascending: where in the list those are
  const std::int32_t* selected_count = nullptr;
  int select = 0;
  DroppedScratch scratch;
  float* weight = nullptr;     // [B][H] or null, natural log
  float* values = nullptr;     // [B][H][D] or null
  AttentionPartials partials;  // where the part goes; null: nowhere
  int split = 0;               // which of the parts it is
};

DroppedParams dropped_of(const skv_rerank_params& rerank, const RerankScratch& rerank_scratch,
                         const DroppedScratch& scratch);
void launch_dropped(const DroppedParams& p, const DeviceTraits& traits, PairRange pairs, cudaStream_t stream);
// The units' sums by pipelines of tiles; false: not for this device or geometry, and nothing was launched.
bool launch_dropped_tiles(const DroppedParams& p, const DeviceTraits& traits, PairRange pairs, cudaStream_t stream);
// A part of the attention of a given weight [B][H] and value [B][H][D]. pairs: all of the batch.
void launch_given_part(const float* weights, const float* values, const AttentionPartials& partials, int split,
                       const skv_geometry& geometry, PairRange pairs, cudaStream_t stream);

// Which splits of a pair hold anything is known from its length alone for dense caches; others fill all.
struct CombineOutput {
  void* output = nullptr;  // [B][H][D]
  std::int32_t output_type = 0;
  float* log_sum_exp = nullptr;  // [B][H] or null
  const skv_session_state* states = nullptr;
  int split_tokens = 0;  // dense: tokens of a split; 0: every split has been written
  // Counters of a decode step; null when there are none.
  skv_decode_counters* counters = nullptr;
  const std::int32_t* selected_count = nullptr;
  const std::int32_t* fetch_count = nullptr;
  const float* mass = nullptr;
};

// early: the launch before this one on the stream makes the last of the parts.
void launch_combine(const CombineOutput& out, const AttentionPartials& partials, const skv_geometry& geometry,
                    PairRange pairs, bool early, cudaStream_t stream);

// --- New tokens -------------------------------------------------------------------------------

// Rotates queries into f32 and stores the new token of every session where its cache keeps it.
struct NewTokens {
  std::int32_t input_type = 0;
  skv_geometry geometry = {};
  std::int32_t batch = 0;
  const void* queries = nullptr;
  const void* keys = nullptr;
  const void* values = nullptr;
  std::int64_t query_stride = 0, key_stride = 0, value_stride = 0;
  const skv_shadow_layer* shadow = nullptr;  // one of the two
  const skv_dense_layer* dense = nullptr;
  const skv_session_state* states = nullptr;
  skv_rope rope = {};
  float* rotated_queries = nullptr;  // [B][H][D]
};

void launch_new_tokens(const NewTokens& p, cudaStream_t stream);

// decode_layer that tells of each stage after it has been launched: its name, its group, its stream. For measurements.
using StageObserver = std::function<void(const char*, int, cudaStream_t)>;
// Visible in the library of the tests; the one that is shipped exports the ABI alone.
[[gnu::visibility("default")]] void decode_in_stages(const skv_decode_layer_params& p, Launch& launch,
                                                     const StageObserver& launched);

}  // namespace skv::cuda
