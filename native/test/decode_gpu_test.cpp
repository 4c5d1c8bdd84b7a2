// The operations of the CUDA decode path against double-precision oracles: selection, cache plan, fetch, rebuilt
// attention, rerank.
#include <set>

#include "decode_gpu_fixture.h"

namespace {

using namespace decode_gpu;

void check_topk(Batch& b) {
  const float radius_weight = 0.5F;
  const skv_landmark_topk_params p = topk_params(b, radius_weight);
  reserve(SKV_OP_LANDMARK_TOPK, &p);
  backend->landmark_topk(p);
  const auto selected = b.selected->read<std::int32_t>();
  const auto counts = b.selected_count->read<std::int32_t>();
  const auto masses = b.mass->read<float>();
  const Shape& s = b.shape;
  for (int session = 0; session < b.size(); ++session) {
    const auto& state = b.states[static_cast<std::size_t>(session)];
    const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
    const int chunks = state.length ? state.indexed_chunks : 0;
    for (int head = 0; head < s.key_value_heads; ++head) {
      const auto pair = static_cast<std::size_t>(session) * s.key_value_heads + static_cast<std::size_t>(head);
      std::vector<double> scores(static_cast<std::size_t>(chunks), -INFINITY);
      std::vector<std::vector<double>> logits(static_cast<std::size_t>(s.group()));
      std::vector<double> log_sums;
      double tolerance = 0;
      int indexed = 0;
      for (int g = 0; g < s.group(); ++g) {
        const auto query = b.query(session, head * s.group() + g);
        double norm = 0;
        for (const double x : query) {
          norm += x * x;
        }
        norm = std::sqrt(norm);
        double sum = 0, most = -INFINITY;
        auto& row = logits[static_cast<std::size_t>(g)];
        for (int c = 0; c < chunks; ++c) {
          const double radius = cache.radius[static_cast<std::size_t>(head * cache.layer().chunk_capacity + c)];
          double logit = -INFINITY;
          if (radius >= 0) {
            double dot = 0, squares = 0;
            for (int d = 0; d < s.head_dim; ++d) {
              const double x = query[static_cast<std::size_t>(d)] * cache.landmark(head, c, d);
              dot += x;
              squares += x * x;
            }
            logit = (dot + radius_weight * norm * radius) / std::sqrt(s.head_dim);
            tolerance = std::max(tolerance, (6 * fixture::kSplitUnit * std::sqrt(squares) +
                                             6 * fixture::kF32Unit * std::sqrt(s.head_dim * squares)) /
                                                    std::sqrt(s.head_dim) +
                                                16 * fixture::kF32Unit * (1 + std::fabs(logit)));
          }
          row.push_back(logit);
          most = std::max(most, logit);
        }
        for (const double logit : row) {
          sum += std::exp(logit - most);
        }
        log_sums.push_back(chunks ? most + std::log(sum) : 0);
        for (int c = 0; c < chunks; ++c) {
          auto& score = scores[static_cast<std::size_t>(c)];
          score = std::max(score, row[static_cast<std::size_t>(c)] - log_sums.back());
        }
      }
      for (const double score : scores) {
        indexed += score > -INFINITY;
      }
      // Logits and their log sum both err.
      tolerance *= 2;
      const int count = std::min(indexed, s.select);
      if (!CHECK_EQUAL(counts[pair], count)) {
        continue;
      }
      std::set<int> chosen;
      double mass = 0;
      for (int i = 0; i < count; ++i) {
        const int c = selected[pair * static_cast<std::size_t>(s.select) + static_cast<std::size_t>(i)];
        if (!CHECK(c >= 0 && c < chunks && (chosen.empty() || c > *chosen.rbegin()))) {
          return;
        }
        chosen.insert(c);
        for (int g = 0; g < s.group(); ++g) {
          mass += std::exp(logits[static_cast<std::size_t>(g)][static_cast<std::size_t>(c)] -
                           log_sums[static_cast<std::size_t>(g)]) /
                  s.group();
        }
      }
      double worst_in = INFINITY, best_out = -INFINITY;
      for (int c = 0; c < chunks; ++c) {
        const double score = scores[static_cast<std::size_t>(c)];
        if (chosen.count(c)) {
          worst_in = std::min(worst_in, score);
        } else {
          best_out = std::max(best_out, score);
        }
      }
      if (count > 0) {
        CHECK(worst_in > -INFINITY);
        CHECK(worst_in >= best_out - 2 * tolerance);
      }
      CHECK_NEAR(masses[pair], count ? mass : 0.0, 4 * tolerance + 64 * fixture::kF32Unit);
    }
  }
}

skv_cache_plan_params plan_params(const Batch& b) {
  skv_cache_plan_params p = {};
  p.struct_size = sizeof(p);
  p.geometry = b.shape.geometry();
  p.batch = b.size();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.select = b.shape.select;
  p.selected = b.selected->as<std::int32_t>();
  p.selected_count = b.selected_count->as<std::int32_t>();
  p.selected_slot = b.selected_slot->as<std::int32_t>();
  p.fetch_chunk = b.fetch_chunk->as<std::int32_t>();
  p.fetch_slot = b.fetch_slot->as<std::int32_t>();
  p.fetch_count = b.fetch_count->as<std::int32_t>();
  return p;
}

// Plans, and checks every number against a literal reading of the rule.
void check_plan(Batch& b) {
  const Shape& s = b.shape;
  const auto selected = b.selected->read<std::int32_t>();
  const auto counts = b.selected_count->read<std::int32_t>();
  std::vector<std::vector<std::int32_t>> chunks, stamps;
  for (const auto& session : b.sessions) {
    chunks.push_back(session->slot_chunk->read<std::int32_t>());
    stamps.push_back(session->slot_stamp->read<std::int32_t>());
  }
  backend->cache_plan(plan_params(b));
  const auto slots = b.selected_slot->read<std::int32_t>();
  const auto fetch_chunk = b.fetch_chunk->read<std::int32_t>();
  const auto fetch_slot = b.fetch_slot->read<std::int32_t>();
  const auto fetch_count = b.fetch_count->read<std::int32_t>();
  for (int session = 0; session < b.size(); ++session) {
    const auto si = static_cast<std::size_t>(session);
    for (int head = 0; head < s.key_value_heads; ++head) {
      const auto pair = si * s.key_value_heads + static_cast<std::size_t>(head);
      const auto list = pair * static_cast<std::size_t>(s.select);
      if (s.slots == 0) {
        CHECK_EQUAL(fetch_count[pair], 0);
        for (int i = 0; i < counts[pair]; ++i) {
          CHECK_EQUAL(slots[list + static_cast<std::size_t>(i)], selected[list + static_cast<std::size_t>(i)]);
        }
        continue;
      }
      std::int32_t* const which = chunks[si].data() + static_cast<std::ptrdiff_t>(head) * s.slots;
      std::int32_t* const stamp = stamps[si].data() + static_cast<std::ptrdiff_t>(head) * s.slots;
      std::vector<int> free;
      for (int slot = 0; slot < s.slots; ++slot) {
        bool wanted = false;
        for (int i = 0; i < counts[pair]; ++i) {
          wanted |= selected[list + static_cast<std::size_t>(i)] == which[slot];
        }
        if (!wanted) {
          free.push_back(slot);
        }
      }
      std::stable_sort(free.begin(), free.end(), [&](int x, int y) { return stamp[x] < stamp[y]; });
      std::size_t fetched = 0;
      bool all = true;
      for (int i = 0; i < counts[pair]; ++i) {
        const int chunk = selected[list + static_cast<std::size_t>(i)];
        int slot = -1;
        for (int j = 0; j < s.slots; ++j) {
          if (which[j] == chunk) {
            slot = j;
          }
        }
        if (slot < 0) {
          slot = free[fetched];
          all &= fetch_chunk[list + fetched] == chunk && fetch_slot[list + fetched] == slot;
          ++fetched;
        }
        all &= slots[list + static_cast<std::size_t>(i)] == slot;
      }
      for (int i = 0; i < counts[pair]; ++i) {
        const int slot = slots[list + static_cast<std::size_t>(i)];
        if (!CHECK(slot >= 0 && slot < s.slots)) {
          return;
        }
        which[slot] = selected[list + static_cast<std::size_t>(i)];
        stamp[slot] = b.states[si].step;
      }
      CHECK(all);
      CHECK_EQUAL(fetch_count[pair], static_cast<std::int32_t>(fetched));
    }
    if (s.slots) {
      CHECK(b.sessions[si]->slot_chunk->read<std::int32_t>() == chunks[si]);
      CHECK(b.sessions[si]->slot_stamp->read<std::int32_t>() == stamps[si]);
    }
  }
}

// Fetches, and checks that every slot that says it holds a chunk does.
void check_gather(Batch& b, int blocks) {
  const Shape& s = b.shape;
  skv_value_gather_params p = {};
  p.struct_size = sizeof(p);
  p.geometry = s.geometry();
  p.batch = b.size();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.select = s.select;
  p.fetch_chunk = b.fetch_chunk->as<std::int32_t>();
  p.fetch_slot = b.fetch_slot->as<std::int32_t>();
  p.fetch_count = b.fetch_count->as<std::int32_t>();
  p.blocks = blocks;
  backend->value_gather(p);
  for (const auto& session : b.sessions) {
    const auto which = session->slot_chunk->read<std::int32_t>();
    const auto content = session->slot_values->read<std::uint8_t>();
    const std::size_t bytes = session->slot_bytes();
    bool same = true;
    for (std::size_t at = 0; at < which.size(); ++at) {
      if (which[at] >= 0) {
        const std::size_t head = at / static_cast<std::size_t>(s.slots);
        const std::vector<std::uint8_t> chunk = session->unpacked(static_cast<std::int64_t>(head), which[at]);
        same &= std::memcmp(&content[at * bytes], chunk.data(), bytes) == 0;
      }
    }
    CHECK(same);
  }
}

void check_sparse(Batch& b) {
  const Shape& s = b.shape;
  Memory output(*backend, b.queries.size() * 4), log_sums(*backend, b.queries.size() / s.head_dim * 4);
  output.poison();
  log_sums.poison();
  const auto p = sparse_params(b, *b.selected_slot, output, log_sums);
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  backend->sparse_attention(p);
  check_attention(b, read_selections(b), queries_of(b), output.read<float>(), log_sums.read<float>(),
                  s.group() > 8 ? fixture::kBf16Unit : fixture::kSplitUnit, fixture::kF32Unit);
}

void check_rerank(Batch& b) {
  const Shape& s = b.shape;
  const auto shortlist = read_selections(b);
  const int keep = std::max(1, s.select / 3);
  const auto pairs = static_cast<std::uint64_t>(b.size()) * static_cast<std::uint64_t>(s.key_value_heads);
  Memory selected(*backend, pairs * static_cast<std::uint64_t>(keep) * 4), counts(*backend, pairs * 4);
  selected.poison();
  counts.poison();
  const auto p = rerank_params(b, keep, selected, counts);
  reserve(SKV_OP_RERANK, &p);
  backend->rerank(p);
  const auto chosen = selected.read<std::int32_t>();
  const auto chosen_counts = counts.read<std::int32_t>();
  for (int session = 0; session < b.size(); ++session) {
    for (int head = 0; head < s.key_value_heads; ++head) {
      const auto pair = static_cast<std::size_t>(session) * s.key_value_heads + static_cast<std::size_t>(head);
      const auto& list = shortlist[pair];
      const int count = std::min(keep, static_cast<int>(list.size()));
      if (!CHECK_EQUAL(chosen_counts[pair], count)) {
        continue;
      }
      std::vector<double> best(list.size(), -INFINITY);
      double tolerance = 0;
      const double query_unit = s.group() > 8 ? fixture::kBf16Unit : fixture::kSplitUnit;
      for (int g = 0; g < s.group() && !list.empty(); ++g) {
        const auto query = b.query(session, head * s.group() + g);
        std::vector<double> masses;
        double total = 0;
        for (const std::int32_t chunk : list) {
          double sum = 0;
          for (int i = 0; i < s.chunk; ++i) {
            const auto key = b.sessions[static_cast<std::size_t>(session)]->rebuilt_key(
                head, static_cast<std::int64_t>(chunk) * s.chunk + i, *b.tables);
            double dot = 0, squares = 0;
            for (std::size_t e = 0; e < key.size(); ++e) {
              dot += key[e] * query[e];
              squares += key[e] * key[e] * query[e] * query[e];
            }
            const double root = std::sqrt(static_cast<double>(s.head_dim));
            tolerance = std::max(
                tolerance,
                6 * std::sqrt((fixture::kBf16Unit * fixture::kBf16Unit + query_unit * query_unit) / 3 * squares) /
                        root +
                    32 * fixture::kF32Unit * (1 + std::fabs(dot / root)));
            sum += std::exp(dot / root);
          }
          masses.push_back(std::log(sum));
          total += sum;
        }
        for (std::size_t i = 0; i < list.size(); ++i) {
          best[i] = std::max(best[i], masses[i] - std::log(total));
        }
      }
      double worst_in = INFINITY, best_out = -INFINITY;
      std::size_t next = 0;
      for (std::size_t i = 0; i < list.size(); ++i) {
        const bool in =
            next < static_cast<std::size_t>(count) && chosen[pair * static_cast<std::size_t>(keep) + next] == list[i];
        if (in) {
          ++next;
          worst_in = std::min(worst_in, best[i]);
        } else {
          best_out = std::max(best_out, best[i]);
        }
      }
      CHECK_EQUAL(next, static_cast<std::size_t>(count));
      if (count > 0) {
        CHECK(worst_in >= best_out - 4 * tolerance);
      }
    }
  }
}

void check_shape(const char* name, const Shape& shape, const std::vector<Batch::Row>& rows) {
  std::printf("%s%s\n", name, shape.coefficient_name());
  Batch b(shape, rows);
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    b.sessions[i]->fill_slots(generator, 0.6, std::max(1, b.states[i].indexed_chunks));
  }
  check_topk(b);
  check_rerank(b);
  check_plan(b);
  check_gather(b, 1 + static_cast<int>(generator() % 12));
  check_sparse(b);
}

std::vector<Batch::Row> ragged(const Shape& s) {
  const int c = s.chunk, w = s.window;
  // A tail in the window; exactly full; wrapped and full window; idle; nothing indexed; fewer chunks than wanted.
  return {{61LL * c + 5, 60LL * c, 3, 70},
          {77LL * c, 75LL * c, 0, 77},
          {90LL * c + w, 90LL * c, 7, 131},
          {0, 0, 0, 9},
          {3, 0, 0, 4},
          {5LL * c + 1, 5LL * c, 1, 8}};
}

void test_shapes() {
  for (const int group : check::cases({1, 4, 7, 8, 16})) {
    for (const int dim : {64, 96, 128}) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = dim;
      s.rank = dim == 64 ? 16 : dim == 96 ? 200 : 160;
      s.pairing = group % 2 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
      s.value_type = (group + dim / 32) % 2 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = dim / 32 % 2 ? SKV_I8 : SKV_BF16;
      s.chunk = group == 8 ? 16 : 8;
      s.slots = group == 7 ? 0 : 40;
      s.rope_scale = group == 4 ? 1.2 : 1.0;
      const std::string name = "G " + std::to_string(group) + ", D " + std::to_string(dim);
      check_shape(name.c_str(), s, ragged(s));
      s.coefficient_type = SKV_I8;
      check_shape(name.c_str(), s, ragged(s));
    }
  }
  Shape s;
  s.key_value_heads = 2;
  s.query_heads = 8;
  s.slots = 33;
  for (const int type : {SKV_BF16, SKV_F8_E4M3, SKV_F12_E4M7, SKV_F6_E2M3}) {
    s.value_type = type;
    s.rotary_dim = 64;
    check_shape("partial rotary, half split", s, ragged(s));
    s.pairing = SKV_INTERLEAVED;
    check_shape("partial rotary, interleaved", s, ragged(s));
    s.pairing = SKV_HALF_SPLIT;
    s.rotary_dim = 24;
    check_shape("rotary dim of no multiple of 16", s, ragged(s));
    s.rank = 256;
    s.rotary_dim = 128;
    check_shape("rank 256", s, ragged(s));
    s.rank = 72;
    check_shape("rank 72", s, ragged(s));
    s.rank = 19;
    check_shape("rank 19", s, ragged(s));
    s.rank = 160;
    s.fine_rows = 4;
    check_shape("fine table shorter than a chunk", s, ragged(s));
    s.fine_rows = 256;
    s.landmark_type = SKV_I8;
  }
  // Coefficients of eight bits: directions in sixteens, in eights, in fours, an even and an odd number of them.
  s.coefficient_type = SKV_I8;
  for (const int type : {SKV_BF16, SKV_F8_E4M3, SKV_F12_E4M7, SKV_F6_E2M3}) {
    s.value_type = type;
    for (const int rank : check::cases({160, 72, 100, 34, 19, 256})) {
      s.rank = rank;
      s.pairing = rank == 72 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
      s.rotary_dim = rank == 34 ? 24 : rank == 72 ? 64 : 128;
      s.chunk = rank == 256 ? 16 : 8;
      check_shape(("rank " + std::to_string(rank)).c_str(), s, ragged(s));
    }
  }
  for (const int dim : {12, 80, 256, 2}) {
    Shape any;
    any.key_value_heads = 3;
    any.query_heads = dim == 12 ? 48 : 12;
    any.head_dim = dim;
    any.rotary_dim = dim == 80 ? 40 : dim;
    any.rank = 48;
    any.slots = 30;
    any.value_type = dim == 80 ? SKV_F8_E4M3 : SKV_BF16;
    any.landmark_type = dim == 256 ? SKV_I8 : SKV_BF16;
    any.pairing = dim == 12 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
    check_shape(("D " + std::to_string(dim)).c_str(), any, ragged(any));
    any.coefficient_type = SKV_I8;
    any.rank = dim == 256 ? 17 : 48;
    check_shape(("D " + std::to_string(dim)).c_str(), any, ragged(any));
  }
  // Packed chunks of every length that the fetching kernels tell apart, and of head dims that are no multiple of four.
  for (const int type : {SKV_F12_E4M7, SKV_F6_E2M3}) {
    for (const int chunk : {8, 16}) {
      for (const int dim : {2, 50, 64, 80, 96, 128, 256}) {
        Shape packed;
        packed.key_value_heads = 2;
        packed.query_heads = 8;
        packed.head_dim = packed.rotary_dim = dim;
        packed.chunk = chunk;
        packed.rank = 40;
        packed.slots = 30;
        packed.value_type = type;
        packed.coefficient_type = chunk == 16 ? SKV_I8 : SKV_BF16;
        check_shape(("packed, D " + std::to_string(dim) + ", C " + std::to_string(chunk)).c_str(), packed,
                    ragged(packed));
      }
    }
  }
  Shape many;
  many.key_value_heads = 32;
  many.query_heads = 32;
  many.head_dim = many.rotary_dim = 64;
  many.rank = 32;
  many.select = 9;
  many.slots = 1000;
  check_shape("K 32, many slots", many, {{61 * 8 + 5, 60 * 8, 3, 70}, {9 * 8 + 2, 8 * 8, 0, 20}});
  Shape longer;
  longer.key_value_heads = 1;
  longer.query_heads = 4;
  longer.head_dim = longer.rotary_dim = 64;
  longer.rank = 16;
  longer.select = 1024;
  longer.slots = 2500;
  check_shape("large selection", longer, {{6000 * 8 + 5, 6000 * 8, 3, 6010}, {9 * 8 + 2, 8 * 8, 40, 20}});
  longer.select = 256;
  longer.slots = 512;
  check_shape("one layer of a long context", longer,
              {{15343 * 8 + 5, 15343 * 8, 3, 15350}, {9 * 8 + 2, 8 * 8, 40, 20}});
  longer.select = 24;
  longer.slots = 24;
  // More chunks than one block's shared memory holds scores of.
  check_shape("long context", longer, {{70000LL * 8 + 5, 70000LL * 8, 3, 70001}});
}

// Equal landmarks give equal scores: the lower ids win, and a crowd in one bin is told apart exactly.
void test_ties() {
  std::printf("ties\n");
  // Rows of scores that are held in registers, in few and in many pieces, and one that is too long for that.
  for (const auto& [chunks, distinct] : {std::pair{3000, 1}, std::pair{3000, 2}, std::pair{3000, 3000},
                                         std::pair{12001, 2}, std::pair{12001, 3000}, std::pair{20003, 3000}}) {
    Shape s;
    s.key_value_heads = 2;
    s.query_heads = 8;
    s.select = 100;
    s.slots = 0;
    Batch b(s, {{8LL * chunks + 8, 8LL * chunks, 0, chunks + 1}});
    const auto d = static_cast<std::size_t>(s.head_dim);
    auto& session = *b.sessions[0];
    std::fill(session.radius.begin(), session.radius.end(), 0.0F);
    session.radius[5] = -1.0F;
    // The first query is a multiple of one axis; landmark c is (c % distinct) small steps along it.
    for (std::size_t c = 0; c < session.landmarks.size() / d; ++c) {
      const auto in_head = c % (static_cast<std::size_t>(chunks) + 1);
      for (std::size_t e = 0; e < d; ++e) {
        session.landmarks[c * d + e] =
            e == 0 ? fixture::to_bf16(static_cast<double>(in_head % static_cast<std::size_t>(distinct) % 256)) : 0;
      }
    }
    for (std::size_t i = 0; i < b.queries.size(); ++i) {
      b.queries[i] = i % d == 0 ? 0.125F : 0.0F;
    }
    b.query_memory->write(b.queries);
    backend->copy(session.layer().landmarks, session.landmarks.data(), session.landmarks.size() * 2);
    backend->copy(session.layer().radius, session.radius.data(), session.radius.size() * 4);
    backend->synchronize();
    const auto p = topk_params(b, 0.0F);
    reserve(SKV_OP_LANDMARK_TOPK, &p);
    backend->landmark_topk(p);
    const auto lists = read_selections(b);
    for (int head = 0; head < 2; ++head) {
      std::vector<std::pair<int, int>> order;  // (-value, id)
      for (int c = 0; c < chunks; ++c) {
        if (head != 0 || c != 5) {
          order.emplace_back(-(c % distinct % 256), c);
        }
      }
      std::sort(order.begin(), order.end());
      std::vector<std::int32_t> expected;
      for (int i = 0; i < s.select; ++i) {
        expected.push_back(order[static_cast<std::size_t>(i)].second);
      }
      std::sort(expected.begin(), expected.end());
      CHECK(lists[static_cast<std::size_t>(head)] == expected);
    }
  }
}

// Shapes without a kernel are refused, with the limit, before anything is launched.
void test_refusals() {
  Shape s;
  Batch b(s, {{61 * 8 + 5, 60 * 8, 0, 70}});
  const auto refused = [&](auto change, skv_status status) {
    auto p = topk_params(b, 0.5F);
    change(p);
    try {
      backend->landmark_topk(p);
      CHECK(!"accepted");
    } catch (const skv::Error& e) {
      CHECK_EQUAL(e.status(), status);
      CHECK(std::string(e.what()).size() > 20);
    }
  };
  refused([](auto& p) { p.geometry.head_dim = 258; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.head_dim = 63; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.query_heads = 8 * 17; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.storage_type = SKV_F16; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.landmark_type = SKV_F8_E4M3; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.coefficient_type = SKV_F8_E4M3; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.coefficient_type = SKV_F32; }, SKV_UNSUPPORTED);
  // A CPU reads packed values in place.
  for (const int type : {SKV_F12_E4M7, SKV_F6_E2M3}) {
    const auto in_place = [&](auto& p) {
      p.geometry.value_type = type;
      p.geometry.slots = 0;
    };
    if (!on_cpu()) {
      refused(in_place, SKV_UNSUPPORTED);
    }
  }
  refused([](auto& p) { p.geometry.chunk = 12; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.rank = 8; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.max_chunks = std::int64_t{1} << 40; }, SKV_INVALID_ARGUMENT);
  auto plan = plan_params(b);
  plan.geometry.slots = plan.select - 1;
  try {
    backend->cache_plan(plan);
    CHECK(!"accepted");
  } catch (const skv::Error& e) {
    CHECK_EQUAL(e.status(), SKV_INVALID_ARGUMENT);
  }
}

}  // namespace

int main() {
  return run([] {
    test_refusals();
    test_ties();
    test_shapes();
  });
}
