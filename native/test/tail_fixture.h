// What the tests of tokens that a selection leaves out share, on CUDA: batches in which they matter, and their weights
// by definition.
#pragma once

#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "decode_gpu_fixture.h"

namespace decode_gpu {

using fixture::kBf16Unit;
using fixture::kF32Unit;
using fixture::kSplitUnit;

inline constexpr double kNothing = -std::numeric_limits<double>::infinity();

using Lists = std::vector<std::vector<std::int32_t>>;  // [B][K]

// A wrapped and full window; idle; nothing indexed; fewer chunks than wanted; exactly as many, all of them indexed.
inline std::vector<Batch::Row> rows_of(const Shape& s) {
  const std::int64_t c = s.chunk;
  return {{61 * c + 5, 60 * c, 3, 70},
          {90 * c + s.window, 90 * c, 7, 131},
          {0, 0, 0, 9},
          {3, 0, 0, 4},
          {5 * c + 1, 5 * c, 1, 8},
          {s.select * c + 2, s.select * c, 0, s.select + 2}};
}

inline constexpr std::size_t kExact = 5;  // of them: all selected

// Chunks whose tokens are alike, and landmarks that are the means of their rebuilt keys: what a selection leaves out
// has a weight that shows.
inline void make_alike(Batch& b) {
  const Shape& s = b.shape;
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    ShadowSession& session = *b.sessions[i];
    const auto rank = static_cast<std::size_t>(s.rank), d = static_cast<std::size_t>(s.head_dim);
    for (auto& x : session.basis) {
      x = fixture::to_bf16(0.3 * fixture::from_bf16(x));
    }
    const std::size_t coefficients = static_cast<std::size_t>(session.layer().chunk_capacity * s.chunk) * rank;
    for (std::size_t at = 0; at < coefficients; ++at) {
      const std::size_t token = at / rank, first = token / static_cast<std::size_t>(s.chunk) * s.chunk;
      const double strength = 8.0 / std::sqrt(1.0 + static_cast<double>(at % rank));
      if (token != first) {
        const std::size_t column = at % rank;
        session.set_coefficient(at, session.coefficient(first * rank + column) * session.coefficient_steps[column] +
                                        0.3 * strength * normal(generator));
      }
    }
    const std::int64_t capacity = session.layer().chunk_capacity;
    for (int head = 0; head < s.key_value_heads; ++head) {
      for (std::int32_t c = 0; c < b.states[i].indexed_chunks; ++c) {
        std::vector<double> mean(d, 0.0);
        for (int t = 0; t < s.chunk; ++t) {
          const auto key = session.rebuilt_key(head, static_cast<std::int64_t>(c) * s.chunk + t, *b.tables);
          for (std::size_t e = 0; e < d; ++e) {
            mean[e] += key[e] / s.chunk;
          }
        }
        const auto place = static_cast<std::size_t>(head * capacity + c);
        if (s.landmark_type == SKV_I8) {
          double largest = 0;
          for (const double x : mean) {
            largest = std::max(largest, std::fabs(x));
          }
          session.landmark_scales[place] = static_cast<float>(largest / 127);
          for (std::size_t e = 0; e < d; ++e) {
            session.landmarks8[place * d + e] = static_cast<std::int8_t>(std::lround(mean[e] / largest * 127));
          }
        } else {
          for (std::size_t e = 0; e < d; ++e) {
            session.landmarks[place * d + e] = fixture::to_bf16(mean[e]);
          }
        }
      }
    }
    const skv_shadow_layer& layer = session.layer();
    backend->copy(layer.basis, session.basis.data(), session.basis.size() * 2);
    session.write_coefficients(*backend);
    if (s.landmark_type == SKV_I8) {
      backend->copy(layer.landmarks, session.landmarks8.data(), session.landmarks8.size());
      backend->copy(layer.landmark_scales, session.landmark_scales.data(), session.landmark_scales.size() * 4);
    } else {
      backend->copy(layer.landmarks, session.landmarks.data(), session.landmarks.size() * 2);
    }
    backend->synchronize();
  }
}

inline void write_radii(const ShadowSession& session) {
  backend->copy(session.layer().radius, session.radius.data(), session.radius.size() * 4);
  backend->synchronize();
}

// Queries of which some make attention flat and some sharp, and an index without gaps for one session.
inline void prepare(Batch& b) {
  const auto d = static_cast<std::size_t>(b.shape.head_dim);
  for (std::size_t head = 0; head < b.queries.size() / d; ++head) {
    const float sharp = generator() % 2 ? 3.0F : 0.7F;
    for (std::size_t e = 0; e < d; ++e) {
      b.queries[head * d + e] *= sharp;
    }
  }
  b.query_memory->write(b.queries);
  if (b.sessions.size() > kExact) {
    ShadowSession& exact = *b.sessions[kExact];
    for (float& radius : exact.radius) {
      radius = std::fabs(radius);
    }
    write_radii(exact);
  }
}

// One of these sessions without moments, and one head of another with nothing in them.
inline constexpr std::size_t kWithoutMoments = 4, kEmptied = 1;

inline void thin_moments(Batch& b) {
  b.table[kWithoutMoments].moments = nullptr;
  b.write_table();
  ShadowSession& empty = *b.sessions[kEmptied];
  std::fill_n(empty.moments.begin(), skv::MomentLayout(b.shape.head_dim).floats, 0.0F);
  backend->copy(empty.layer().moments, empty.moments.data(), empty.moments.size() * 4);
  backend->synchronize();
}

// Every query head of a batch: index [B][H], session, key/value head, pair [B][K].
template <class F>
inline void each_head(const Batch& b, F&& f) {
  for (int session = 0; session < b.size(); ++session) {
    for (int head = 0; head < b.shape.query_heads; ++head) {
      const int kv = head / b.shape.group();
      f(static_cast<std::size_t>(session * b.shape.query_heads + head), session, kv,
        static_cast<std::size_t>(session * b.shape.key_value_heads + kv));
    }
  }
}

inline double log_add(double a, double b) {
  const double largest = std::max(a, b);
  return largest == kNothing ? kNothing : largest + std::log(std::exp(a - largest) + std::exp(b - largest));
}

// Log of a weight, and how far it may be off.
struct Weight {
  double log = kNothing, tolerance = 0;
};

inline void check_weight(float actual, const Weight& expected) {
  if (expected.log == kNothing) {
    CHECK(actual == -INFINITY);
  } else {
    CHECK_NEAR(actual, expected.log, expected.tolerance + 16 * kF32Unit * (1 + std::fabs(expected.log)));
  }
}

// Of the indexed tokens, by their landmarks: of all, and of those left out by a list.
struct LandmarkWeight {
  double all = kNothing, left = kNothing;
  double tolerance = 0;  // of `left`, as a share of all
};

inline LandmarkWeight landmark_weight(const Batch& b, int session, int head, const std::vector<double>& query,
                                      const std::vector<std::int32_t>& listed, double radius_weight) {
  const Shape& s = b.shape;
  const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
  const auto& state = b.states[static_cast<std::size_t>(session)];
  const std::set<std::int32_t> taken(listed.begin(), listed.end());
  const double norm = std::sqrt(std::inner_product(query.begin(), query.end(), query.begin(), 0.0));
  const double root = std::sqrt(static_cast<double>(s.head_dim));
  LandmarkWeight weight;
  double logit_tolerance = 0;
  for (int c = 0; state.length > 0 && c < state.indexed_chunks; ++c) {
    const double radius = cache.radius[static_cast<std::size_t>(head * cache.layer().chunk_capacity + c)];
    if (radius < 0) {
      CHECK(taken.count(c) == 0);
      continue;
    }
    double dot = 0, squares = 0;
    for (int d = 0; d < s.head_dim; ++d) {
      const double x = query[static_cast<std::size_t>(d)] * cache.landmark(head, c, d);
      dot += x;
      squares += x * x;
    }
    const double logit = dot / root, with_radius = logit + radius_weight * norm * radius / root;
    // As for the selection; the radius may be added and taken off again.
    logit_tolerance = std::max(
        logit_tolerance, (6 * kSplitUnit * std::sqrt(squares) + 6 * kF32Unit * std::sqrt(s.head_dim * squares)) / root +
                             16 * kF32Unit * (1 + std::fabs(with_radius) + std::fabs(logit)));
    const double log = logit + std::log(static_cast<double>(s.chunk));
    weight.all = log_add(weight.all, log);
    if (taken.count(c) == 0) {
      weight.left = log_add(weight.left, log);
    }
  }
  // All and what is listed both err. Exponentials, sums and logarithms are good to some f32 units.
  weight.tolerance = 2 * std::expm1(logit_tolerance) + 64 * kF32Unit;
  return weight;
}

// Of a large group queries are rounded as keys are.
inline bool rounds_queries(const Shape& s) {
  return s.group() > 8;
}

// The score of a rebuilt key, the standard deviation that its own rounding brings, which is another for each key, and
// how far the score may be off by that of the query too.
struct Score {
  double score, deviation, tolerance;
};

inline Score score_of(const Batch& b, const std::vector<double>& key, const std::vector<double>& query) {
  const double query_unit = rounds_queries(b.shape) ? kBf16Unit : kSplitUnit;
  const double root = std::sqrt(static_cast<double>(b.shape.head_dim));
  double dot = 0, squares = 0;
  for (std::size_t e = 0; e < key.size(); ++e) {
    dot += key[e] * query[e];
    squares += key[e] * key[e] * query[e] * query[e];
  }
  const double rounded = std::sqrt(squares / 3) / root;
  return {dot / root, kBf16Unit * rounded,
          6 * std::hypot(kBf16Unit, query_unit) * rounded + 32 * kF32Unit * (1 + std::fabs(dot / root))};
}

// Of the tokens of chunks, by their rebuilt keys.
inline Weight exact_weight(const Batch& b, int session, int head, const std::vector<double>& query,
                           const std::vector<std::int32_t>& chunks) {
  Weight weight;
  for (const std::int32_t chunk : chunks) {
    for (int i = 0; i < b.shape.chunk; ++i) {
      const auto key = b.sessions[static_cast<std::size_t>(session)]->rebuilt_key(
          head, static_cast<std::int64_t>(chunk) * b.shape.chunk + i, *b.tables);
      const Score score = score_of(b, key, query);
      weight.tolerance = std::max(weight.tolerance, score.tolerance);
      weight.log = log_add(weight.log, score.score);
    }
  }
  return weight;
}

inline std::vector<std::int32_t> without(const std::vector<std::int32_t>& list,
                                         const std::vector<std::int32_t>& taken) {
  std::vector<std::int32_t> rest;
  std::set_difference(list.begin(), list.end(), taken.begin(), taken.end(), std::back_inserter(rest));
  return rest;
}

inline Lists read_lists(const Memory& ids, const Memory& count, int stride) {
  const auto all = ids.read<std::int32_t>(), counts = count.read<std::int32_t>();
  Lists lists;
  for (std::size_t pair = 0; pair < counts.size(); ++pair) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(pair) * stride;
    lists.emplace_back(begin, begin + counts[pair]);
  }
  return lists;
}

// The part that takes part for a weight by the moments of a layer, if there is one.
inline std::vector<fixture::OracleRest> rest_of(const Batch& b, int session, int head, const std::vector<double>& query,
                                                const Weight& weight) {
  const auto index = static_cast<std::size_t>(session);
  const skv::MomentLayout layout(b.shape.head_dim);
  const float* const moments = &b.sessions[index]->moments[static_cast<std::size_t>(head * layout.floats)];
  if (b.states[index].length == 0 || !b.table[index].moments || moments[layout.count] == 0 ||
      !std::isfinite(weight.log)) {
    return {};
  }
  constexpr double kRotated = 8 * kF32Unit;  // the error of a query that the device has rotated
  return {fixture::oracle_rest(query, moments, weight.log, weight.tolerance, kRotated)};
}

// What a step has selected: the chunks whose slots bear its stamp.
inline Lists stamped(const Batch& b) {
  const Shape& s = b.shape;
  Lists lists;
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    const auto chunks = b.sessions[i]->slot_chunk->read<std::int32_t>();
    const auto stamps = b.sessions[i]->slot_stamp->read<std::int32_t>();
    for (int head = 0; head < s.key_value_heads; ++head) {
      std::vector<std::int32_t> list;
      for (int slot = head * s.slots; slot < (head + 1) * s.slots; ++slot) {
        if (stamps[static_cast<std::size_t>(slot)] == b.states[i].step) {
          list.push_back(chunks[static_cast<std::size_t>(slot)]);
        }
      }
      std::sort(list.begin(), list.end());
      lists.push_back(list);
    }
  }
  return lists;
}

inline std::vector<std::int32_t> indexed(const Batch& b, int session, int head) {
  const auto& state = b.states[static_cast<std::size_t>(session)];
  const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
  std::vector<std::int32_t> list;
  for (std::int32_t c = 0; state.length > 0 && c < state.indexed_chunks; ++c) {
    if (cache.radius[static_cast<std::size_t>(head * cache.layer().chunk_capacity + c)] >= 0) {
      list.push_back(c);
    }
  }
  return list;
}

// The weight of what a layer leaves to its moments: of the indexed chunks not listed, by their landmarks, and of some
// of the listed ones, by their rebuilt keys.
inline Weight left_out(const Batch& b, int session, int head, const std::vector<double>& query,
                       const std::vector<std::int32_t>& listed, const std::vector<std::int32_t>& dropped) {
  Weight weight = exact_weight(b, session, head, query, dropped);
  const LandmarkWeight far = landmark_weight(b, session, head, query, listed, kRadiusWeight);
  if (far.left != kNothing) {
    // A share of all is the error, so where next to nothing is left it may be of any sign and far off: then by how much
    // the weight itself may be, as attention takes its part.
    CHECK(far.tolerance < 0.5);
    const double off = far.tolerance / std::exp(far.left - far.all);
    weight.log = log_add(weight.log, far.left);
    weight.tolerance = std::max(weight.tolerance, off < 0.5 ? -std::log1p(-off) : off);
  }
  return weight;
}

// One step of a layer without and with what is left out, and what it has attended to.
struct LayerStep {
  std::vector<std::uint16_t> without, with;
  std::vector<std::vector<double>> queries;
  Lists selected;
};

inline LayerStep step_layer(Batch& b, int shortlist) {
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    b.sessions[i]->fill_slots(generator, 0.6, std::max(1, b.states[i].indexed_chunks));
  }
  const StepInput in(b);
  Memory output(*backend, b.queries.size() * 2);
  auto p = decode_params(b, in, output, static_cast<int>(generator() % 4), shortlist);
  LayerStep step;
  step.without = decode(p, output);
  p.tail = 1;
  step.with = decode(p, output);
  step.selected = stamped(b);
  // The device's own new tokens.
  for (auto& session : b.sessions) {
    session->recent_keys = session->recent_keys_memory->read<std::uint16_t>();
    session->recent_values = session->recent_values_memory->read<std::uint16_t>();
  }
  step.queries = rotated_queries(b, in);
  return step;
}

// rests: of each head, what takes part for the tokens left out.
inline void check_step(const Batch& b, const LayerStep& step, const Rests& rests) {
  const auto d = static_cast<std::ptrdiff_t>(b.shape.head_dim);
  bool same_without = true, different_with = true;
  for (std::size_t at = 0; at < rests.size(); ++at) {
    const auto begin = static_cast<std::ptrdiff_t>(at) * d;
    const bool same =
        std::equal(step.with.begin() + begin, step.with.begin() + begin + d, step.without.begin() + begin);
    (rests[at].empty() ? same_without : different_with) &= same == rests[at].empty();
  }
  CHECK(same_without);
  CHECK(different_with);
  std::vector<float> actual;
  for (const auto x : step.with) {
    actual.push_back(static_cast<float>(fixture::from_bf16(x)));
  }
  check_attention(b, step.selected, step.queries, actual, {}, rounds_queries(b.shape) ? kBf16Unit : kSplitUnit,
                  kBf16Unit, rests);
}

}  // namespace decode_gpu
