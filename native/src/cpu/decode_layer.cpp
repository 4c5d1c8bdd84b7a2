#include <optional>
#include <string>

#include "cpu/attention.h"
#include "cpu/cache_plan.h"
#include "cpu/landmark_topk.h"
#include "cpu/new_tokens.h"
#include "cpu/rerank.h"
#include "cpu/slot_keys.h"
#include "cpu/sparse_attention.h"
#include "cpu/value_gather.h"

namespace skv::cpu {
namespace {

// What one stage of the step leaves for the next.
struct Between {
  float* queries;                 // [B][H][D] rotated
  std::int32_t* shortlist;        // [B][K][shortlist], with rerank
  std::int32_t* shortlist_count;  // [B][K]
  std::int32_t* selected;         // [B][K][S]
  std::int32_t* selected_count;   // [B][K]
  std::int32_t* slot;             // [B][K][places], and the same of the following
  std::int32_t* fetch_chunk;
  std::int32_t* fetch_slot;
  std::int32_t* fetch_count;  // [B][K]
  float* mass;                // [B][K]
  float* tail;                // [B][H], where the tokens left out take part, and with rerank the following
  float* dropped;             // [B][H]
  float* dropped_values;      // [B][H][D]
};

bool reranks(const skv_decode_layer_params& p) {
  return p.shortlist > p.select;
}

// The longest list that slots are planned for: slots of keys hold what is scored, others what is selected.
std::int32_t most_places(const skv_decode_layer_params& p) {
  return reranks(p) && p.geometry.slots != 0 ? p.shortlist : p.select;
}

// Whether slots hold keys: the same for all sessions, or the step is refused.
bool keeps_keys(const skv_decode_layer_params& p) {
  std::int32_t with = 0, without = 0;
  for (std::int32_t session = 0; session < p.batch && p.geometry.slots != 0; ++session) {
    if (p.states[session].length > 0) {
      ++(rounds_keys(p.layers[session]) ? with : without);
    }
  }
  if (with != 0 && without != 0) {
    throw Error(SKV_INVALID_ARGUMENT, "decode_layer: " + std::to_string(with) + " sessions have slot_keys, " +
                                          std::to_string(without) + " have not; with slots, all of a batch or none");
  }
  return with != 0;
}

std::uint64_t query_rows(const skv_decode_layer_params& p) {
  return static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.query_heads);
}

std::uint64_t query_count(const skv_decode_layer_params& p) {
  return query_rows(p) * static_cast<std::uint64_t>(p.geometry.head_dim);
}

// Counted by the step, not by its layers: whether they have a basis of values is not known before they are there.
bool predicts(const skv_decode_layer_params& p) {
  return p.tail != 0 && reranks(p);
}

std::uint64_t tail_bytes(const skv_decode_layer_params& p) {
  return (p.tail != 0 ? Workspace::bytes_of<float>(query_rows(p)) : 0) +
         (predicts(p) ? Workspace::bytes_of<float>(query_rows(p)) + Workspace::bytes_of<float>(query_count(p)) : 0);
}

std::uint64_t between_bytes(const skv_decode_layer_params& p) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(head_pairs(p.geometry, p.batch));
  const std::uint64_t list = Workspace::bytes_of<std::int32_t>(pairs * static_cast<std::uint64_t>(p.select));
  const std::uint64_t places = Workspace::bytes_of<std::int32_t>(pairs * static_cast<std::uint64_t>(most_places(p)));
  const std::uint64_t counts = Workspace::bytes_of<std::int32_t>(pairs);
  return Workspace::bytes_of<float>(query_count(p)) +
         (reranks(p) ? Workspace::bytes_of<std::int32_t>(pairs * static_cast<std::uint64_t>(p.shortlist)) + counts
                     : 0) +
         list + 3 * places + 2 * counts + Workspace::bytes_of<float>(pairs) + tail_bytes(p);
}

Between take_between(const skv_decode_layer_params& p, Workspace& workspace) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(head_pairs(p.geometry, p.batch));
  const std::uint64_t places = pairs * static_cast<std::uint64_t>(most_places(p));
  Between b{};
  b.queries = workspace.take<float>(query_count(p));
  if (reranks(p)) {
    b.shortlist = workspace.take<std::int32_t>(pairs * static_cast<std::uint64_t>(p.shortlist));
    b.shortlist_count = workspace.take<std::int32_t>(pairs);
  }
  b.selected = workspace.take<std::int32_t>(pairs * static_cast<std::uint64_t>(p.select));
  b.slot = workspace.take<std::int32_t>(places);
  b.fetch_chunk = workspace.take<std::int32_t>(places);
  b.fetch_slot = workspace.take<std::int32_t>(places);
  b.selected_count = workspace.take<std::int32_t>(pairs);
  b.fetch_count = workspace.take<std::int32_t>(pairs);
  b.mass = workspace.take<float>(pairs);
  b.tail = p.tail != 0 ? workspace.take<float>(query_rows(p)) : nullptr;
  b.dropped = predicts(p) ? workspace.take<float>(query_rows(p)) : nullptr;
  b.dropped_values = predicts(p) ? workspace.take<float>(query_count(p)) : nullptr;
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
  topk.tail = b.tail;
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
  rerank.tail = b.tail;
  rerank.dropped = b.dropped;
  rerank.dropped_values = b.dropped_values;
  return rerank;
}

// kept: slots hold keys.
skv_cache_plan_params plan_of(const skv_decode_layer_params& p, const Between& b, bool kept) {
  const bool of_shortlist = kept && reranks(p);
  skv_cache_plan_params plan{};
  plan.struct_size = sizeof(plan);
  plan.geometry = p.geometry;
  plan.batch = p.batch;
  plan.layers = p.layers;
  plan.states = p.states;
  plan.select = of_shortlist ? p.shortlist : p.select;
  plan.selected = of_shortlist ? b.shortlist : b.selected;
  plan.selected_count = of_shortlist ? b.shortlist_count : b.selected_count;
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
  attention.tail = b.tail;
  attention.dropped = b.dropped;
  attention.dropped_values = b.dropped_values;
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

}  // namespace

std::uint64_t decode_layer_workspace(const skv_decode_layer_params& p, const ExecutionTraits& traits) {
  const Between none{};
  return between_bytes(p) + landmark_topk_workspace(topk_of(p, none), traits) +
         (reranks(p) ? rerank_workspace(rerank_of(p, none), traits) : 0) +
         cache_plan_workspace(plan_of(p, none, true), traits) +  // the larger: layers may not be there yet
         (p.geometry.slots == 0 ? 0 : SlotKeys::bytes(p.geometry, traits)) +
         sparse_attention_workspace(attention_of(p, none), traits);
}

// One layer of a decode step, stage by stage over the whole batch; each stage spreads over all threads. Floor: the
// landmarks read, and the multiplications of the rebuilt keys; see the stages. (Stages of different heads side by side,
// one reading landmarks while another rebuilds keys, came out the same: both keep the multipliers busy.)
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
  const bool kept = keeps_keys(p);
  const skv_landmark_topk_params topk_params = topk_of(p, between);
  const skv_rerank_params rerank_params = rerank_of(p, between);
  const skv_cache_plan_params plan_params = plan_of(p, between, kept);
  const skv_value_gather_params gather_params = gather_of(p, between);
  const skv_sparse_attention_params attention_params = attention_of(p, between);
  const LandmarkTopk topk(topk_params, execution);
  std::optional<Rerank> rerank;
  if (reranks(p)) {
    rerank.emplace(rerank_params, execution, kept ? between.slot : nullptr);
  }
  const CachePlan plan(plan_params, execution);
  std::optional<SlotKeys> keys;
  if (kept) {
    keys.emplace(plan_params, p.rope, execution);
  }
  const ValueGather gather(gather_params, execution.set);
  const SparseAttention attention(attention_params, execution, rerank ? &*rerank : nullptr, kept);
  ThreadPool& pool = execution.pool;
  const auto fetch = [&](std::int64_t pair, int thread) {
    plan.place(pair, thread);
    if (p.geometry.slots != 0 && !kept) {
      gather.fetch(pair);
    }
  };
  pool.parallel_neighbours(topk.pairs() * topk.units(), topk.units(),
                           [&](std::int64_t i) { topk.score(i / topk.units(), i % topk.units()); });
  pool.parallel_for(topk.pairs(), [&](std::int64_t pair, int thread) {
    topk.choose(pair, thread);
    if (kept || !rerank) {
      fetch(pair, thread);
    }
  });
  if (keys) {
    const std::int64_t units = keys->units();
    pool.parallel_neighbours(keys->pairs() * units, units,
                             [&](std::int64_t i, int thread) { keys->rebuild(i / units, i % units, thread); });
  }
  if (rerank) {
    const std::int64_t units = rerank->units();
    pool.parallel_neighbours(rerank->pairs() * units, units,
                             [&](std::int64_t i, int thread) { rerank->score(i / units, i % units, thread); });
    pool.parallel_for(rerank->pairs(), [&](std::int64_t pair, int thread) {
      rerank->choose(pair, thread);
      if (!kept) {
        fetch(pair, thread);
      }
    });
  }
  const std::int64_t parts = attention.parts();
  pool.parallel_neighbours(attention.pairs() * parts, parts,
                           [&](std::int64_t i, int thread) { attention.attend(i / parts, i % parts, thread); });
  pool.parallel_for(attention.pairs(), [&](std::int64_t pair) { attention.combine(pair); });
  if (p.counters != nullptr) {
    count(p, between);
  }
}

}  // namespace skv::cpu
