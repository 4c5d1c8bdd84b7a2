#include <atomic>
#include <new>
#include <optional>
#include <string>

#include "cpu/attention.h"
#include "cpu/cache_plan.h"
#include "cpu/landmark_topk.h"
#include "cpu/new_tokens.h"
#include "cpu/rerank.h"
#include "cpu/sparse_attention.h"
#include "cpu/value_gather.h"

namespace skv::cpu {
namespace {

// What one stage of the step leaves for the next.
struct Between {
  float* queries;                 // [B][H][D] rotated
  std::int32_t* shortlist;        // [B][K][shortlist], with rerank
  std::int32_t* shortlist_count;  // [B][K]
  std::int32_t* selected;         // [B][K][S], and the same of the following
  std::int32_t* slot;
  std::int32_t* fetch_chunk;
  std::int32_t* fetch_slot;
  std::int32_t* selected_count;  // [B][K]
  std::int32_t* fetch_count;     // [B][K]
  float* mass;                   // [B][K]
};

bool reranks(const skv_decode_layer_params& p) {
  return p.shortlist > p.select;
}

std::uint64_t query_count(const skv_decode_layer_params& p) {
  return static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.query_heads) *
         static_cast<std::uint64_t>(p.geometry.head_dim);
}

std::uint64_t between_bytes(const skv_decode_layer_params& p) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(head_pairs(p.geometry, p.batch));
  const std::uint64_t list = Workspace::bytes_of<std::int32_t>(pairs * static_cast<std::uint64_t>(p.select));
  const std::uint64_t counts = Workspace::bytes_of<std::int32_t>(pairs);
  return Workspace::bytes_of<float>(query_count(p)) +
         (reranks(p) ? Workspace::bytes_of<std::int32_t>(pairs * static_cast<std::uint64_t>(p.shortlist)) + counts
                     : 0) +
         4 * list + 2 * counts + Workspace::bytes_of<float>(pairs);
}

Between take_between(const skv_decode_layer_params& p, Workspace& workspace) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(head_pairs(p.geometry, p.batch));
  const std::uint64_t list = pairs * static_cast<std::uint64_t>(p.select);
  Between b{};
  b.queries = workspace.take<float>(query_count(p));
  if (reranks(p)) {
    b.shortlist = workspace.take<std::int32_t>(pairs * static_cast<std::uint64_t>(p.shortlist));
    b.shortlist_count = workspace.take<std::int32_t>(pairs);
  }
  b.selected = workspace.take<std::int32_t>(list);
  b.slot = workspace.take<std::int32_t>(list);
  b.fetch_chunk = workspace.take<std::int32_t>(list);
  b.fetch_slot = workspace.take<std::int32_t>(list);
  b.selected_count = workspace.take<std::int32_t>(pairs);
  b.fetch_count = workspace.take<std::int32_t>(pairs);
  b.mass = workspace.take<float>(pairs);
  return b;
}

skv_landmark_topk_params topk_of(const skv_decode_layer_params& p, const Between& b) {
  skv_landmark_topk_params topk{};
  topk.struct_size = sizeof(topk);
  topk.query_type = SKV_F32;
  topk.geometry = p.geometry;
  topk.batch = p.batch;
  topk.queries = b.queries;
  topk.layers = p.layers;
  topk.states = p.states;
  topk.radius_weight = p.radius_weight;
  topk.select = reranks(p) ? p.shortlist : p.select;
  topk.max_chunks = p.max_chunks;
  topk.selected = reranks(p) ? b.shortlist : b.selected;
  topk.selected_count = reranks(p) ? b.shortlist_count : b.selected_count;
  topk.mass = p.counters == nullptr ? nullptr : b.mass;
  return topk;
}

skv_rerank_params rerank_of(const skv_decode_layer_params& p, const Between& b) {
  skv_rerank_params rerank{};
  rerank.struct_size = sizeof(rerank);
  rerank.query_type = SKV_F32;
  rerank.geometry = p.geometry;
  rerank.batch = p.batch;
  rerank.queries = b.queries;
  rerank.layers = p.layers;
  rerank.states = p.states;
  rerank.rope = p.rope;
  rerank.shortlist_stride = p.shortlist;
  rerank.shortlist = b.shortlist;
  rerank.shortlist_count = b.shortlist_count;
  rerank.select = p.select;
  rerank.selected = b.selected;
  rerank.selected_count = b.selected_count;
  return rerank;
}

skv_cache_plan_params plan_of(const skv_decode_layer_params& p, const Between& b) {
  skv_cache_plan_params plan{};
  plan.struct_size = sizeof(plan);
  plan.geometry = p.geometry;
  plan.batch = p.batch;
  plan.layers = p.layers;
  plan.states = p.states;
  plan.select = p.select;
  plan.selected = b.selected;
  plan.selected_count = b.selected_count;
  plan.selected_slot = b.slot;
  plan.fetch_chunk = b.fetch_chunk;
  plan.fetch_slot = b.fetch_slot;
  plan.fetch_count = b.fetch_count;
  return plan;
}

skv_value_gather_params gather_of(const skv_decode_layer_params& p, const Between& b) {
  skv_value_gather_params gather{};
  gather.struct_size = sizeof(gather);
  gather.geometry = p.geometry;
  gather.batch = p.batch;
  gather.layers = p.layers;
  gather.select = p.select;
  gather.fetch_chunk = b.fetch_chunk;
  gather.fetch_slot = b.fetch_slot;
  gather.fetch_count = b.fetch_count;
  return gather;
}

skv_sparse_attention_params attention_of(const skv_decode_layer_params& p, const Between& b) {
  skv_sparse_attention_params attention{};
  attention.struct_size = sizeof(attention);
  attention.query_type = SKV_F32;
  attention.output_type = p.input_type;
  attention.geometry = p.geometry;
  attention.batch = p.batch;
  attention.queries = b.queries;
  attention.layers = p.layers;
  attention.states = p.states;
  attention.rope = p.rope;
  attention.select = p.select;
  attention.selected = b.selected;
  attention.selected_slot = b.slot;
  attention.selected_count = b.selected_count;
  attention.output = p.output;
  return attention;
}

void count(const skv_decode_layer_params& p, const Between& b) {
  const std::int64_t heads = p.geometry.key_value_heads;
  for (std::int64_t session = 0; session < p.batch; ++session) {
    skv_decode_counters& counters = p.counters[session];
    for (std::int64_t pair = session * heads; pair < (session + 1) * heads; ++pair) {
      counters.selected += b.selected_count[pair];
      counters.fetched += b.fetch_count[pair];
      counters.mass += static_cast<double>(b.mass[pair]);
    }
  }
}

// Counts down to what the next stage waits for. Whoever does the last piece opens it.
class Gate {
 public:
  explicit Gate(std::int64_t pieces) : left_(static_cast<std::uint32_t>(pieces) + 1) {}
  // True for the last of the pieces.
  bool finish_piece() { return left_.fetch_sub(1, std::memory_order_acq_rel) == 2; }
  void open() {
    left_.store(0, std::memory_order_release);
    left_.notify_all();
  }
  void await() const {
    constexpr int kLooks = 1000;
    for (int look = 0; look < kLooks; ++look) {
      if (left_.load(std::memory_order_acquire) == 0) {
        return;
      }
    }
    for (std::uint32_t left = left_.load(std::memory_order_acquire); left != 0;
         left = left_.load(std::memory_order_acquire)) {
      left_.wait(left, std::memory_order_acquire);
    }
  }

 private:
  std::atomic<std::uint32_t> left_;
};

// The stages of all (session, key/value head) pairs as one sequence of pieces, in which the stages of a pair lie some
// pairs apart: so a thread that waits for memory (landmarks) mostly has one beside it that computes (rebuilt keys).
// A piece waits only for pieces before it, and threads take pieces in order, so whatever is waited for is under way. No
// piece throws: nobody would open what others wait for.
class Sequence {
 public:
  Sequence(const LandmarkTopk& topk, const Rerank* rerank, const CachePlan& plan, const ValueGather* gather,
           const SparseAttention& attention, Workspace& workspace)
      : topk_(topk), rerank_(rerank), plan_(plan), gather_(gather), attention_(attention), pairs_(topk.pairs()) {
    const std::uint64_t count = static_cast<std::uint64_t>(pairs_);
    listed_ = workspace.take<Gate>(count);
    planned_ = workspace.take<Gate>(count);
    attended_ = workspace.take<Gate>(count);
    for (std::int64_t pair = 0; pair < pairs_; ++pair) {
      new (listed_ + pair) Gate(topk_.units());
      new (planned_ + pair) Gate(rerank_units());
      new (attended_ + pair) Gate(attention_.parts());
    }
  }
  static std::uint64_t bytes(std::int64_t pairs) {
    return 3 * Workspace::bytes_of<Gate>(static_cast<std::uint64_t>(pairs));
  }

  std::int64_t pieces() const { return rounds() * pieces_of_round(); }

  void run(std::int64_t piece, int thread) const {
    const std::int64_t round = piece / pieces_of_round(), at = piece % pieces_of_round();
    // Evenly mixed: of the pieces of a round up to `at`, each stage has its share.
    const std::int64_t computing = rerank_units() + attention_.parts(), all = pieces_of_round();
    const std::int64_t before = at * computing / all, after = (at + 1) * computing / all;
    if (after == before) {
      score(round, at - before, thread);
    } else if (before < rerank_units()) {
      rescore(round - kLag, before, thread);
    } else {
      attend(round - (rerank_ != nullptr ? 2 : 1) * kLag, before - rerank_units(), thread);
    }
  }

 private:
  // Pairs between the stages of a pair: the choice after the last unit must not be waited for.
  static constexpr std::int64_t kLag = 2;

  std::int64_t rerank_units() const { return rerank_ != nullptr ? rerank_->units() : 0; }
  std::int64_t pieces_of_round() const { return topk_.units() + rerank_units() + attention_.parts(); }
  std::int64_t rounds() const { return pairs_ + (rerank_ != nullptr ? 2 : 1) * kLag; }
  bool exists(std::int64_t pair) const { return pair >= 0 && pair < pairs_; }

  void score(std::int64_t pair, std::int64_t unit, int thread) const {
    if (!exists(pair)) {
      return;
    }
    topk_.score(pair, unit);
    if (listed_[pair].finish_piece()) {
      topk_.choose(pair, thread);
      if (rerank_ == nullptr) {
        fetch(pair, thread);
      }
      listed_[pair].open();
    }
  }
  void rescore(std::int64_t pair, std::int64_t unit, int thread) const {
    if (!exists(pair)) {
      return;
    }
    listed_[pair].await();
    rerank_->score(pair, unit, thread);
    if (planned_[pair].finish_piece()) {
      rerank_->choose(pair, thread);
      fetch(pair, thread);
      planned_[pair].open();
    }
  }
  void fetch(std::int64_t pair, int thread) const {
    plan_.place(pair, thread);
    if (gather_ != nullptr) {
      gather_->fetch(pair);
    }
  }
  void attend(std::int64_t pair, std::int64_t part, int thread) const {
    if (!exists(pair)) {
      return;
    }
    (rerank_ != nullptr ? planned_ : listed_)[pair].await();
    attention_.attend(pair, part, thread);
    if (attended_[pair].finish_piece()) {
      attention_.combine(pair);
    }
  }

  const LandmarkTopk& topk_;
  const Rerank* rerank_;
  const CachePlan& plan_;
  const ValueGather* gather_;
  const SparseAttention& attention_;
  std::int64_t pairs_;
  Gate* listed_;
  Gate* planned_;
  Gate* attended_;
};

}  // namespace

std::uint64_t decode_layer_workspace(const skv_decode_layer_params& p, const ExecutionTraits& traits) {
  const Between none{};
  return between_bytes(p) + landmark_topk_workspace(topk_of(p, none), traits) +
         (reranks(p) ? rerank_workspace(rerank_of(p, none), traits) : 0) +
         cache_plan_workspace(plan_of(p, none), traits) + sparse_attention_workspace(attention_of(p, none), traits) +
         Sequence::bytes(head_pairs(p.geometry, p.batch));
}

// One layer of a decode step. Floor: the landmarks read, and the multiplications of the rebuilt keys; see the stages.
// With two threads or more the first hides behind the second.
void decode_layer(const skv_decode_layer_params& p, Execution& execution) {
  check_shadow_geometry(p.geometry, p.input_type, "decode_layer");
  execution.workspace.require(decode_layer_workspace(p, execution.traits()), "decode_layer");
  for (std::int32_t session = 0; session < p.batch; ++session) {
    const skv_session_state& state = p.states[session];
    if (state.length > 0 && state.length - state.recent_begin > p.geometry.window) {
      throw Error(SKV_INVALID_ARGUMENT, "decode_layer: session " + std::to_string(session) + " has " +
                                            std::to_string(state.length - state.recent_begin) +
                                            " recent tokens, its window holds " + std::to_string(p.geometry.window));
    }
  }
  const Between between = take_between(p, execution.workspace);
  const NewTokens tokens = {p.input_type,   p.geometry,   p.batch,        p.queries, p.keys, p.values,
                            p.query_stride, p.key_stride, p.value_stride, p.states,  p.rope, between.queries};
  add_new_tokens(
      tokens, execution,
      [](const void* context, std::int64_t session) -> TokenPlace {
        const auto& step = *static_cast<const skv_decode_layer_params*>(context);
        const skv_shadow_layer& layer = step.layers[session];
        return {layer.recent_keys, layer.recent_values, step.geometry.window,
                (step.states[session].length - 1) % step.geometry.window};
      },
      &p);
  const skv_landmark_topk_params topk_params = topk_of(p, between);
  const skv_rerank_params rerank_params = rerank_of(p, between);
  const skv_cache_plan_params plan_params = plan_of(p, between);
  const skv_value_gather_params gather_params = gather_of(p, between);
  const skv_sparse_attention_params attention_params = attention_of(p, between);
  const LandmarkTopk topk(topk_params, execution);
  std::optional<Rerank> rerank;
  if (reranks(p)) {
    rerank.emplace(rerank_params, execution);
  }
  const Rerank* const reranked = rerank ? &*rerank : nullptr;
  const CachePlan plan(plan_params, execution);
  const ValueGather gather(gather_params);
  const SparseAttention attention(attention_params, execution, reranked);
  const Sequence sequence(topk, reranked, plan, p.geometry.slots != 0 ? &gather : nullptr, attention,
                          execution.workspace);
  execution.pool.parallel_for(sequence.pieces(), [&](std::int64_t piece, int thread) { sequence.run(piece, thread); });
  if (p.counters != nullptr) {
    count(p, between);
  }
}

}  // namespace skv::cpu
