// Random sessions of a shadow cache in host memory, and what attention over them is by definition, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "moments.h"
#include "operands.h"

namespace decode {

using check::Array;

constexpr double kUnit = 0x1p-24;  // relative rounding error of fp32

struct Shape {
  int group = 4, heads = 2, dim = 128, chunk = 8, rank = 40;
  int storage = SKV_BF16, value = SKV_BF16, landmark = SKV_BF16, coefficient = SKV_BF16;
  int query = SKV_F32, output = SKV_F32;
  int window = 64, slots = 0, select = 12;
  int pairing = SKV_HALF_SPLIT, rotary = 128;
  double rope_scale = 1;

  int query_heads() const { return group * heads; }
  skv_geometry geometry() const {
    return {query_heads(), heads, dim, chunk, rank, storage, value, landmark, coefficient, window, slots};
  }
  std::string name() const {
    char text[160];
    std::snprintf(
        text, sizeof(text),
        "G%d K%d D%d C%d r%d storage %d values %d landmarks %d coefficients %d queries %d outputs %d slots %d", group,
        heads, dim, chunk, rank, storage, value, landmark, coefficient, query, output, slots);
    return text;
  }
};

// All rotated, stored in one type; the rest as above.
inline Shape shape(int group, int heads, int dim, int chunk, int rank, int storage, int query, int slots = 0) {
  Shape s;
  s.group = group;
  s.heads = heads;
  s.dim = dim;
  s.rotary = dim;
  s.chunk = chunk;
  s.rank = rank;
  s.storage = s.value = s.landmark = s.coefficient = storage;
  s.query = query;
  s.output = query;
  s.slots = slots;
  return s;
}

struct Session {
  Session(const Shape& s, std::int64_t length, std::int64_t recent_begin, int outlier_count, std::mt19937_64& random)
      : shape(s),
        capacity(recent_begin / s.chunk + 3),
        outlier_capacity(outlier_count + 2),
        coefficients(s.coefficient, capacity * s.chunk * s.rank),
        basis(s.storage, static_cast<std::int64_t>(s.heads) * s.rank * s.dim),
        landmarks(s.landmark, s.heads * capacity * s.dim),
        outlier_keys(s.storage, s.heads * outlier_capacity * s.chunk * s.dim),
        outlier_values(s.storage, s.heads * outlier_capacity * s.chunk * s.dim),
        recent_keys(s.storage, static_cast<std::int64_t>(s.heads) * s.window * s.dim),
        recent_values(s.storage, static_cast<std::int64_t>(s.heads) * s.window * s.dim),
        values(s.value, s.heads * capacity * s.chunk * s.dim, static_cast<std::int64_t>(s.chunk) * s.dim),
        slot_values(skv::slot_type(s.value), static_cast<std::int64_t>(s.heads) * s.slots * s.chunk * s.dim),
        landmark_scales(SKV_F32, s.heads * capacity),
        radius(SKV_F32, s.heads * capacity),
        value_scales(SKV_F32, s.heads * capacity),
        moments(SKV_F32, s.heads * skv::MomentLayout(s.dim).floats),
        value_basis(s.storage, static_cast<std::int64_t>(s.heads) * s.rank * s.dim) {
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    // Coefficients of a falling spectrum, as keys have.
    std::vector<double> amounts(static_cast<std::size_t>(coefficients.count()));
    for (std::int64_t i = 0; i < coefficients.count(); ++i) {
      amounts[static_cast<std::size_t>(i)] = normal(random) * 3.0 / std::sqrt(1.0 + static_cast<double>(i % s.rank));
    }
    basis.fill(random, 0.35);
    value_basis.fill(random, 0.2);
    coefficient_steps.assign(static_cast<std::size_t>(s.rank), 1.0);
    if (s.coefficient == SKV_I8) {
      narrow_coefficients(amounts);
    }
    for (std::int64_t i = 0; i < coefficients.count(); ++i) {
      set_coefficient(i, amounts[static_cast<std::size_t>(i)]);
    }
    if (s.landmark == SKV_I8) {
      for (std::int64_t i = 0; i < landmarks.count(); ++i) {
        landmarks.set(i, std::clamp(std::round(normal(random) * 50), -127.0, 127.0));
      }
    } else {
      landmarks.fill(random, 0.8);
    }
    for (std::int64_t i = 0; i < radius.count(); ++i) {
      landmark_scales.set(i, 0.01 + 0.02 * uniform(random));
      radius.set(i, uniform(random) < 0.1 ? -1.0 : uniform(random));
      const double power = -2 + 3 * uniform(random);
      value_scales.set(i, std::exp2(s.value == SKV_F12_E4M7 ? std::round(power) : power));
    }
    outlier_keys.fill(random, 1.5);
    outlier_values.fill(random);
    recent_keys.fill(random);
    recent_values.fill(random);
    // Few of six bits are clipped.
    values.fill(random, s.value == SKV_F6_E2M3 ? 0.05 : 1.0);
    fill_moments(random);
    slot_chunk.assign(static_cast<std::size_t>(s.heads) * s.slots, -1);
    slot_stamp.assign(slot_chunk.size(), 0);
    layer.coefficients = coefficients.data();
    layer.basis = basis.data();
    layer.landmarks = landmarks.data();
    layer.landmark_scales = landmark_scales.as<float>();
    layer.radius = radius.as<float>();
    layer.outlier_keys = outlier_keys.data();
    layer.outlier_values = outlier_values.data();
    layer.recent_keys = recent_keys.data();
    layer.recent_values = recent_values.data();
    layer.values = values.data();
    layer.value_scales = value_scales.as<float>();
    layer.moments = moments.as<float>();
    layer.slot_values = s.slots == 0 ? nullptr : slot_values.data();
    layer.slot_chunk = slot_chunk.data();
    layer.slot_stamp = slot_stamp.data();
    layer.chunk_capacity = capacity;
    layer.outlier_capacity = outlier_capacity;
    state = {length, recent_begin, static_cast<std::int32_t>(recent_begin / s.chunk), outlier_count, 5, 0};
  }
  Session(const Session&) = delete;

  // Coefficient `at` [token][r], in units of the direction: I8 holds it in steps.
  void set_coefficient(std::int64_t at, double amount) {
    const double step = coefficient_steps[static_cast<std::size_t>(at % shape.rank)];
    coefficients.set(at,
                     shape.coefficient == SKV_I8 ? std::clamp(std::nearbyint(amount / step), -127.0, 127.0) : amount);
  }

  void predict() { layer.value_basis = value_basis.data(); }

  bool indexed(int head, std::int64_t chunk) const {
    return chunk < state.indexed_chunks && radius[head * capacity + chunk] >= 0;
  }

  Shape shape;
  std::int64_t capacity;
  int outlier_capacity;
  Array coefficients, basis, landmarks, outlier_keys, outlier_values, recent_keys, recent_values, values, slot_values,
      landmark_scales, radius, value_scales, moments;
  Array value_basis;                      // of no layer before predict() is called
  std::vector<double> coefficient_steps;  // [r]: what one of a direction's I8 coefficients stands for, otherwise 1
  std::vector<std::int32_t> slot_chunk, slot_stamp;
  skv_shadow_layer layer{};
  skv_session_state state{};

 private:
  // The steps of I8 coefficients of so much, and the bases for whole numbers of them.
  void narrow_coefficients(const std::vector<double>& amounts) {
    std::fill(coefficient_steps.begin(), coefficient_steps.end(), 0.0);
    for (std::size_t i = 0; i < amounts.size(); ++i) {
      double& step = coefficient_steps[i % coefficient_steps.size()];
      step = std::max(step, std::fabs(amounts[i]) / 127);
    }
    for (std::int64_t i = 0; i < basis.count(); ++i) {
      const double step = coefficient_steps[static_cast<std::size_t>(i / shape.dim % shape.rank)];
      basis.set(i, basis[i] * step);
      value_basis.set(i, value_basis[i] * step);
    }
  }

  // Of some tokens that are not those of the session: keys around a mean, and values that go with them.
  void fill_moments(std::mt19937_64& random) {
    constexpr int kTokens = 24;
    const std::int64_t dim = shape.dim;
    const skv::MomentLayout layout(dim);
    std::normal_distribution<double> normal;
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      std::vector<double> mean(static_cast<std::size_t>(dim)), sums(static_cast<std::size_t>(layout.floats));
      for (double& x : mean) {
        x = 0.5 * normal(random);
      }
      for (int t = 0; t < kTokens; ++t) {
        const double strength = normal(random);
        std::vector<double> key, value;
        for (const double m : mean) {
          key.push_back(m + 0.5 * normal(random));
          value.push_back(normal(random) + strength * m);
        }
        for (std::int64_t i = 0; i < dim; ++i) {
          for (std::int64_t j = 0; j < dim; ++j) {
            sums[static_cast<std::size_t>(i * dim + j)] +=
                value[static_cast<std::size_t>(i)] * key[static_cast<std::size_t>(j)];
          }
          sums[static_cast<std::size_t>(layout.keys + i)] += key[static_cast<std::size_t>(i)];
          sums[static_cast<std::size_t>(layout.values + i)] += value[static_cast<std::size_t>(i)];
        }
        sums[static_cast<std::size_t>(layout.count)] += 1;
      }
      for (std::int64_t i = 0; i < layout.floats; ++i) {
        moments.set(head * layout.floats + i, sums[static_cast<std::size_t>(i)]);
      }
    }
  }
};

// A key and value as attention sees them, and how far each element of the key may be off.
struct Token {
  std::vector<double> key, error, value;
};

inline std::vector<double> row(const Array& from, std::int64_t first, int dim) {
  std::vector<double> to(static_cast<std::size_t>(dim));
  for (int d = 0; d < dim; ++d) {
    to[static_cast<std::size_t>(d)] = from[first + d];
  }
  return to;
}

inline Token rebuilt_token(const Session& s, const check::RopeTables& rope, int head, std::int64_t position) {
  const Shape& shape = s.shape;
  Token token;
  std::vector<double> key(static_cast<std::size_t>(shape.dim)), size(key.size());
  for (int i = 0; i < shape.rank; ++i) {
    const double a = s.coefficients[position * shape.rank + i];
    for (int d = 0; d < shape.dim; ++d) {
      const double term = a * s.basis[(static_cast<std::int64_t>(head) * shape.rank + i) * shape.dim + d];
      key[static_cast<std::size_t>(d)] += term;
      size[static_cast<std::size_t>(d)] += std::fabs(term);
    }
  }
  token.key = rope.rotate(key, position);
  // Where keys are kept in slots they are of the storage type. A sum of `rank` products; then the rotation: tables
  // rounded, their product, two terms, each a few roundings of a pair as long as its two elements together.
  const double most = *std::max_element(size.begin(), size.end());
  constexpr double kRotation = 16;
  token.error.assign(key.size(), 2 * std::max(1.0, rope.scale) * (shape.rank + kRotation) * kUnit * most);
  for (std::size_t d = 0; s.layer.slot_keys != nullptr && d < key.size(); ++d) {
    token.error[d] += check::roundoff(shape.storage) * (std::fabs(token.key[d]) + token.error[d]) +
                      check::smallest_step(shape.storage);
  }
  const std::int64_t chunk = position / shape.chunk;
  token.value = row(s.values, (head * s.capacity * shape.chunk + position) * shape.dim, shape.dim);
  if (skv::is_scaled(shape.value)) {
    for (double& x : token.value) {
      x *= s.value_scales[head * s.capacity + chunk];
    }
  }
  return token;
}

inline Token stored_token(const Array& keys, const Array& values, std::int64_t index, int dim) {
  return {row(keys, index * dim, dim), std::vector<double>(static_cast<std::size_t>(dim), 0.0),
          row(values, index * dim, dim)};
}

// The dense tokens of a session: outliers and recent window.
inline std::vector<Token> dense_tokens(const Session& s, int head) {
  std::vector<Token> tokens;
  for (std::int64_t t = 0; t < static_cast<std::int64_t>(s.state.outliers) * s.shape.chunk; ++t) {
    tokens.push_back(stored_token(s.outlier_keys, s.outlier_values,
                                  static_cast<std::int64_t>(head) * s.outlier_capacity * s.shape.chunk + t,
                                  s.shape.dim));
  }
  for (std::int64_t p = s.state.recent_begin; p < s.state.length; ++p) {
    tokens.push_back(stored_token(s.recent_keys, s.recent_values,
                                  static_cast<std::int64_t>(head) * s.shape.window + p % s.shape.window, s.shape.dim));
  }
  return tokens;
}

struct Attention {
  std::vector<double> output, tolerance;
  double log_sum_exp = -std::numeric_limits<double>::infinity(), log_sum_exp_tolerance = 0;
};

// What stands for tokens as one: their weight, and the value that is to be expected of them.
struct Rest {
  double log_weight;
  std::vector<double> value, tolerance;
};

// moments: of one head.
inline Rest rest_of(const std::vector<double>& query, const Array& moments, std::int64_t head, double log_weight) {
  const std::int64_t dim = static_cast<std::int64_t>(query.size());
  const skv::MomentLayout layout(dim);
  const std::int64_t first = head * layout.floats;
  const double count = moments[first + layout.count], root = std::sqrt(static_cast<double>(dim));
  Rest rest{log_weight, {}, {}};
  double along = 0, along_size = 0;  // mean(k) . q / sqrt(D)
  for (std::int64_t j = 0; j < dim; ++j) {
    const double term = moments[first + layout.keys + j] / count * query[static_cast<std::size_t>(j)] / root;
    along += term;
    along_size += std::fabs(term);
  }
  for (std::int64_t i = 0; i < dim; ++i) {
    const double mean = moments[first + layout.values + i] / count;
    double sum = 0, size = 0;
    for (std::int64_t j = 0; j < dim; ++j) {
      const double term = moments[first + i * dim + j] / count * query[static_cast<std::size_t>(j)] / root;
      sum += term;
      size += std::fabs(term);
    }
    rest.value.push_back(mean + (sum - mean * along));
    // Each term is rounded a few times, and once for each that is added after it.
    rest.tolerance.push_back((static_cast<double>(dim) + 8) * kUnit * (size + std::fabs(mean) * (along_size + 1)));
  }
  return rest;
}

// query_error: relative error that the query itself may carry. rests: of finite weight.
inline Attention attention(const std::vector<double>& query, const std::vector<Token>& tokens, double query_error = 0,
                           const std::vector<Rest>& rests = {}) {
  const std::size_t dim = query.size();
  Attention result{std::vector<double>(dim), std::vector<double>(dim)};
  if (tokens.empty() && rests.empty()) {
    return result;
  }
  std::vector<double> scores;
  double largest = -std::numeric_limits<double>::infinity(), off = 0;
  const double root = std::sqrt(static_cast<double>(dim));
  for (const Token& token : tokens) {
    double dot = 0, error = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      dot += query[d] * token.key[d];
      // The scaled query, the product and each addition round.
      error += std::fabs(query[d]) *
               (token.error[d] + std::fabs(token.key[d]) * ((static_cast<double>(dim) + 4) * kUnit + query_error));
    }
    scores.push_back(dot / root);
    off = std::max(off, error / root);
    largest = std::max(largest, scores.back());
  }
  double sum = 0;
  std::vector<double> size(dim), carried(dim);
  for (const Rest& rest : rests) {
    largest = std::max(largest, rest.log_weight);
  }
  for (const Rest& rest : rests) {
    const double weight = std::exp(rest.log_weight - largest);
    sum += weight;
    for (std::size_t d = 0; d < dim; ++d) {
      result.output[d] += weight * rest.value[d];
      size[d] += weight * std::fabs(rest.value[d]);
      carried[d] += weight * rest.tolerance[d];
    }
  }
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const double weight = std::exp(scores[t] - largest);
    sum += weight;
    for (std::size_t d = 0; d < dim; ++d) {
      result.output[d] += weight * tokens[t].value[d];
      size[d] += weight * std::fabs(tokens[t].value[d]);
    }
  }
  // Each weight errs by its score's error, twice (above and below the line), an exponential's few roundings, also of
  // the difference to the largest, and the sums.
  constexpr double kExponential = 16;
  const double relative =
      2 * std::expm1(off) + (static_cast<double>(tokens.size()) + kExponential + 2 * std::fabs(largest)) * kUnit;
  for (std::size_t d = 0; d < dim; ++d) {
    result.output[d] /= sum;
    result.tolerance[d] = (2 * relative * size[d] + carried[d]) / sum;
  }
  result.log_sum_exp = largest + std::log(sum);
  result.log_sum_exp_tolerance = relative + 4 * kUnit * (1 + std::fabs(result.log_sum_exp));
  return result;
}

inline double output_tolerance(int type, double expected, double tolerance) {
  return tolerance * (1 + check::roundoff(type)) + check::roundoff(type) * std::fabs(expected) +
         check::smallest_step(type);
}

}  // namespace decode
