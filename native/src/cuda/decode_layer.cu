#include <algorithm>

#include "cuda/batch_cut.h"
#include "cuda/decode.h"

namespace skv::cuda {
namespace {

constexpr int kSelectStreams = 3;

PairRange range_of(const BatchParts& parts, int i) {
  return {parts.first(i), parts.end(i) - parts.first(i)};
}

skv_landmark_topk_params selection_of(const skv_decode_layer_params& p) {
  skv_landmark_topk_params s = {};
  s.struct_size = sizeof(s);
  s.query_type = SKV_F32;
  s.geometry = p.geometry;
  s.batch = p.batch;
  s.layers = p.layers;
  s.states = p.states;
  s.radius_weight = p.radius_weight;
  s.select = p.shortlist > 0 ? p.shortlist : p.select;
  s.max_chunks = p.max_chunks;
  return s;
}

skv_rerank_params rerank_of(const skv_decode_layer_params& p) {
  skv_rerank_params r = {};
  r.struct_size = sizeof(r);
  r.query_type = SKV_F32;
  r.geometry = p.geometry;
  r.batch = p.batch;
  r.layers = p.layers;
  r.states = p.states;
  r.rope = p.rope;
  r.shortlist_stride = p.shortlist;
  r.select = p.select;
  return r;
}

// The parts of the workspace, in one place for sizing and for taking.
struct DecodeScratch {
  float* queries = nullptr;          // [B][H][D] rotated
  std::int32_t* selected = nullptr;  // [B][K][S], and so the three below
  std::int32_t* selected_count = nullptr;
  PlanOutput plan;
  std::int32_t* shortlist = nullptr;  // [B][K][shortlist]
  std::int32_t* shortlist_count = nullptr;
  float* mass = nullptr;
  float* tail = nullptr;  // [B][H], where the tokens left out take part
  SelectionScratch selection;
  RerankScratch rerank;
  DroppedScratch dropped;
  AttentionPartials partials;
};

std::uint64_t tail_bytes(const skv_decode_layer_params& p) {
  return p.tail ? Workspace::align(static_cast<std::uint64_t>(p.batch) *
                                   static_cast<std::uint64_t>(p.geometry.query_heads) * sizeof(float))
                : 0;
}

std::uint64_t lists_bytes(const skv_decode_layer_params& p) {
  const auto pairs = static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.key_value_heads);
  const auto row = Workspace::align(pairs * static_cast<std::uint64_t>(p.select) * 4);
  const auto shortlist = Workspace::align(pairs * static_cast<std::uint64_t>(std::max(p.shortlist, 0)) * 4);
  return 4 * row + shortlist + 4 * Workspace::align(pairs * 4) + tail_bytes(p);
}

// What a rerank drops has a value of its own.
bool has_dropped(const skv_decode_layer_params& p) {
  return p.tail && p.shortlist > 0;
}

// Parts of what a selection leaves out: of the dropped tokens, then of the tail.
int tails_of(const skv_decode_layer_params& p) {
  return (p.tail ? 1 : 0) + (has_dropped(p) ? 1 : 0);
}

int splits_of(const skv_decode_layer_params& p, const DeviceTraits& traits) {
  return attention_parts(p.geometry, p.rope, p.select, p.shortlist > 0, traits).total() + tails_of(p);
}

std::uint64_t query_bytes(const skv_decode_layer_params& p) {
  return Workspace::align(static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.query_heads) *
                          static_cast<std::uint64_t>(p.geometry.head_dim) * sizeof(float));
}

DecodeScratch take_scratch(const skv_decode_layer_params& p, const DeviceTraits& traits, Workspace& workspace) {
  const auto pairs = static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.key_value_heads);
  const auto row = pairs * static_cast<std::uint64_t>(p.select);
  DecodeScratch s;
  s.queries = workspace.take<float>(query_bytes(p) / sizeof(float));
  s.selected = workspace.take<std::int32_t>(row);
  s.plan.selected_slot = workspace.take<std::int32_t>(row);
  s.plan.fetch_chunk = workspace.take<std::int32_t>(row);
  s.plan.fetch_slot = workspace.take<std::int32_t>(row);
  s.shortlist = workspace.take<std::int32_t>(pairs * static_cast<std::uint64_t>(std::max(p.shortlist, 0)));
  s.selected_count = workspace.take<std::int32_t>(pairs);
  s.plan.fetch_count = workspace.take<std::int32_t>(pairs);
  s.shortlist_count = workspace.take<std::int32_t>(pairs);
  s.mass = workspace.take<float>(pairs);
  if (p.tail) {
    s.tail = workspace.take<float>(tail_bytes(p) / sizeof(float));
  }
  s.selection = take_selection_scratch(selection_of(p), traits, p.tail != 0, workspace);
  if (p.shortlist > 0) {
    s.rerank = take_rerank_scratch(rerank_of(p), true, workspace);
    if (has_dropped(p)) {
      s.dropped = take_dropped_scratch(rerank_of(p), workspace);
    }
  }
  s.partials = take_attention_partials(static_cast<std::int64_t>(pairs), splits_of(p, traits), p.geometry, workspace);
  s.partials.tails = tails_of(p);
  return s;
}

void check_decode(const skv_decode_layer_params& p) {
  check_shadow_geometry(p.geometry, p.input_type, "decode_layer");
  if (p.select < 1 || p.select > SKV_MAX_SELECT || p.shortlist < 0 || p.shortlist > kMaxShortlist ||
      (p.shortlist > 0 && p.shortlist < p.select)) {
    throw Error(SKV_UNSUPPORTED, "decode_layer on CUDA selects 1 to " + std::to_string(SKV_MAX_SELECT) +
                                     " chunks of a shortlist of at least as many and at most " +
                                     std::to_string(kMaxShortlist) + ", not " + std::to_string(p.select) + " of " +
                                     std::to_string(p.shortlist));
  }
  if (p.geometry.slots != 0 && p.geometry.slots < p.select) {
    throw Error(SKV_INVALID_ARGUMENT, "decode_layer needs as many slots as chunks are selected: " +
                                          std::to_string(p.geometry.slots) + " < " + std::to_string(p.select));
  }
  if (p.geometry.window < 1) {
    throw Error(SKV_INVALID_ARGUMENT,
                "decode_layer needs a recent window, not one of " + std::to_string(p.geometry.window) + " tokens");
  }
}

}  // namespace

std::uint64_t decode_layer_workspace(const skv_decode_layer_params& p, const DeviceTraits& traits) {
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  return query_bytes(p) + lists_bytes(p) + selection_scratch_bytes(selection_of(p), traits, p.tail != 0) +
         (p.shortlist > 0 ? rerank_scratch_bytes(rerank_of(p), true) : 0) +
         (has_dropped(p) ? dropped_scratch_bytes(rerank_of(p)) : 0) +
         attention_partials_bytes(pairs.count, splits_of(p, traits), p.geometry);
}

// The link is what a step waits for, so everything before a fetch only has to keep the link fed, and attention fills
// what is left of the machine. The fetches of a selection are one chain of early launches, each asking while the chunks
// of the one before arrive; the next selection's chain, on the other of two side streams, begins beside the last of it.
// The first selections have a stream each, and each begins when all blocks of the one before it have: it takes the SMs
// that those leave, before attention gets any, but never theirs; the rest follow on the last of these streams. Fetches
// are more urgent than selections, earlier selections than later ones, all of them than attention: the next groups are
// selected and the last ones attended while the values of a group travel. Attention of the last group begins beside its
// fetch, and waits for the values only when it needs them. What a selection leaves out is weighed beside the fetch.
// The first selection begins beside the new tokens, and with one group the fetch and the last step begin early, too.
// Reached by graph, 8 sessions of 122880 tokens: 0.322 to 0.334 ms at 60 % resident (link 0.243 at the rate of the copy
// engine, 0.268 at that of reads by kernels), 0.193 to 0.201 at 83 %; values of twelve bits 0.265 to 0.277 and 0.174 to
// 0.179; fp8 values and int8 landmarks 0.217 and 0.167 to 0.176, of six bits 0.193 and 0.166; one session 0.073, 0.065,
// 0.059 and 0.055 (H200, 2026-11-29, bench_cuda_decode). The first selection ends after 0.036.
void decode_layer(const skv_decode_layer_params& p, Launch& launch) {
  decode_in_stages(p, launch, [](const char*, int, cudaStream_t) {});
}

void decode_in_stages(const skv_decode_layer_params& p, Launch& launch, const StageObserver& launched) {
  check_decode(p);
  launch.workspace.require(decode_layer_workspace(p, launch.traits), "decode_layer");
  if (p.batch == 0) {
    return;
  }
  Workspace workspace = launch.workspace;
  const DecodeScratch s = take_scratch(p, launch.traits, workspace);

  NewTokens tokens;
  tokens.input_type = p.input_type;
  tokens.geometry = p.geometry;
  tokens.batch = p.batch;
  tokens.queries = p.queries;
  tokens.keys = p.keys;
  tokens.values = p.values;
  tokens.query_stride = p.query_stride;
  tokens.key_stride = p.key_stride;
  tokens.value_stride = p.value_stride;
  tokens.shadow = p.layers;
  tokens.states = p.states;
  tokens.rope = p.rope;
  tokens.rotated_queries = s.queries;
  skv_landmark_topk_params selection = selection_of(p);
  selection.queries = s.queries;
  selection.selected = p.shortlist > 0 ? s.shortlist : s.selected;
  selection.selected_count = p.shortlist > 0 ? s.shortlist_count : s.selected_count;
  selection.mass = p.counters ? s.mass : nullptr;
  selection.tail = s.tail;
  const PlanOutput selection_plan = p.shortlist > 0 ? PlanOutput{} : s.plan;

  skv_rerank_params rerank = rerank_of(p);
  rerank.queries = s.queries;
  rerank.shortlist = s.shortlist;
  rerank.shortlist_count = s.shortlist_count;
  rerank.selected = s.selected;
  rerank.selected_count = s.selected_count;

  TailParams tail;
  DroppedParams dropped;
  if (p.tail) {
    tail = tail_of(selection, s.selection);
    tail.partials = s.partials;
    tail.split = s.partials.splits - 1;
  }
  if (has_dropped(p)) {
    add_dropped(tail, rerank, s.rerank);
    tail.predicted = true;
    dropped = dropped_of(rerank, s.rerank, s.dropped);
    dropped.partials = s.partials;
    dropped.split = s.partials.splits - 2;
  }

  skv_value_gather_params gather = {};
  gather.struct_size = sizeof(gather);
  gather.geometry = p.geometry;
  gather.batch = p.batch;
  gather.layers = p.layers;
  gather.select = p.select;
  gather.fetch_chunk = s.plan.fetch_chunk;
  gather.fetch_slot = s.plan.fetch_slot;
  gather.fetch_count = s.plan.fetch_count;

  skv_sparse_attention_params attention = {};
  attention.struct_size = sizeof(attention);
  attention.query_type = SKV_F32;
  attention.output_type = p.input_type;
  attention.geometry = p.geometry;
  attention.batch = p.batch;
  attention.queries = s.queries;
  attention.layers = p.layers;
  attention.states = p.states;
  attention.rope = p.rope;
  attention.select = p.select;
  attention.selected = s.selected;
  attention.selected_slot = s.plan.selected_slot;
  attention.selected_count = s.selected_count;
  attention.output = p.output;
  GivenScores given;
  if (p.shortlist > 0) {
    given = {s.rerank.scores, s.rerank.places, static_cast<std::int64_t>(p.shortlist) * p.geometry.chunk};
  }

  const BatchCut cut = cut_batch(all_pairs(p.batch, p.geometry).count, p.groups, p.shortlist > 0);
  const BatchParts &fetched = cut.fetched, &selected = cut.selected;
  const bool piped = fetched.count > 1;
  const auto side = [&](int i) { return piped ? launch.side[i] : launch.stream; };
  cudaStream_t const fetch_streams[2] = {side(0), side(1)};
  cudaStream_t const select_streams[kSelectStreams] = {side(2), side(3), side(4)};
  cudaStream_t const attention_streams[2] = {launch.stream, side(5)};
  cudaStream_t const tail_stream = launch.side[6];
  int event = 0;
  const auto order = [&](cudaStream_t earlier, cudaStream_t later) {
    if (earlier != later) {
      launch.order(earlier, later, event++);
    }
  };
  // The new tokens on the stream of the first selection, which begins beside them; the others behind them.
  const int select_stream_count = std::min(selected.count, kSelectStreams);
  order(launch.stream, select_streams[0]);
  launch_new_tokens(tokens, select_streams[0]);
  launched("new tokens", 0, select_streams[0]);
  for (int i = 1; i < select_stream_count; ++i) {
    order(select_streams[0], select_streams[i]);
  }
  int selections = 0;
  cudaEvent_t only_last_left = nullptr;  // of the fetches of a selection
  bool attended_aside = false;
  cudaStream_t select_stream = select_streams[0];
  for (int group = 0; group < fetched.count; ++group) {
    const PairRange pairs = range_of(fetched, group);
    const auto selection_begins_at = [&](int pair) {
      return selections < selected.count && selected.first(selections) == pair;
    };
    const bool first_of_selection = selection_begins_at(pairs.first);
    if (first_of_selection) {
      const PairRange part = range_of(selected, selections);
      select_stream = select_streams[std::min(selections, kSelectStreams - 1)];
      const int at_once = part.count + (selections == 1 ? selected.end(0) : 0);
      const bool another = selections + 1 < select_stream_count;
      cudaEvent_t const begun = another ? launch.events[event++] : nullptr;
      launch_selection(selection, s.selection, selection_plan, launch.traits, part, at_once, selections == 0, begun,
                       select_stream);
      if (another) {
        check(cudaStreamWaitEvent(select_streams[selections + 1], begun, 0), "waiting for an event");
      }
      if (p.shortlist > 0) {
        launch_rerank(rerank, s.rerank, s.plan, launch.traits, part, select_stream);
      }
      launched("select", group, select_stream);
      if (p.tail) {
        order(select_stream, tail_stream);
        if (has_dropped(p)) {
          launch_dropped(dropped, launch.traits, part, tail_stream);
        }
        launch_tail(tail, part, tail_stream);
        launched("tail", group, tail_stream);
      }
      ++selections;
    }
    const bool last = group + 1 == fetched.count;
    const bool last_of_selection = last || selection_begins_at(pairs.end());
    cudaStream_t const fetch_stream = fetch_streams[selections % 2];
    if (first_of_selection) {
      order(select_stream, fetch_stream);
      if (only_last_left) {
        check(cudaStreamWaitEvent(fetch_stream, only_last_left, 0), "waiting for an event");
      }
    }
    if (last_of_selection && !last) {
      only_last_left = launch.events[event++];
      check(cudaEventRecord(only_last_left, fetch_stream), "recording an event");
    }
    launch_value_gather(gather, pairs,
                        {.early = !piped, .continues = !first_of_selection, .holds_next = !last_of_selection || piped},
                        fetch_stream);
    launched("gather", group, fetch_stream);
    const bool beside_fetch = last && p.geometry.slots > 0;
    cudaStream_t const attention_stream = beside_fetch ? fetch_stream : attention_streams[group % 2];
    order(fetch_stream, attention_stream);
    attended_aside |= attention_stream == attention_streams[1];
    launch_sparse_attention(attention, given, s.partials, launch.traits, pairs, beside_fetch, attention_stream);
    launched("attention", group, attention_stream);
    if (last) {
      order(fetch_stream, launch.stream);
    }
  }
  if (attended_aside) {
    order(attention_streams[1], launch.stream);
  }
  if (p.tail) {
    order(tail_stream, launch.stream);
  }
  CombineOutput out;
  out.output = p.output;
  out.output_type = p.input_type;
  out.states = p.states;
  out.counters = p.counters;
  out.selected_count = s.selected_count;
  out.fetch_count = s.plan.fetch_count;
  out.mass = s.mass;
  launch_combine(out, s.partials, p.geometry, all_pairs(p.batch, p.geometry), !piped && !p.tail, launch.stream);
  launched("combine", 0, launch.stream);
}

}  // namespace skv::cuda
