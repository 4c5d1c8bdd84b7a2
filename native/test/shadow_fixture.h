// Random caches of both kinds, on the host in double precision and on a device in its layouts, and the oracles
// of the decode operations over them. Shares no code with the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "backend.h"
#include "moments.h"
#include "packed_values.h"
#include "shadowkv_types.h"
#include "value_types.h"

namespace fixture {

inline constexpr double kBf16Unit = 1.0 / 256;               // largest relative error of rounding to bf16
inline constexpr double kSplitUnit = kBf16Unit * kBf16Unit;  // of a bf16 and the bf16 of what it left
inline constexpr double kF32Unit = 1.0 / (1 << 24);

inline std::uint16_t to_bf16(double x) {
  const float f = static_cast<float>(x);
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

inline double from_bf16(std::uint16_t h) {
  const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline double from_e4m3(std::uint8_t b) {
  const int exponent = b >> 3 & 15, mantissa = b & 7;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return b & 0x80 ? -magnitude : magnitude;
}

// Memory of the backend that is given back.
class Memory {
 public:
  Memory(skv::Backend& backend, std::uint64_t bytes, bool pinned = false)
      : backend_(&backend),
        bytes_(bytes),
        pinned_(pinned),
        address_(pinned ? backend.allocate_host(std::max<std::uint64_t>(bytes, 256))
                        : backend.allocate_device(std::max<std::uint64_t>(bytes, 256))) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { pinned_ ? backend_->free_host(address_) : backend_->free_device(address_); }

  template <class T>
  T* as() const {
    return static_cast<T*>(address_);
  }
  std::uint64_t bytes() const { return bytes_; }

  template <class T>
  void write(const std::vector<T>& from) {
    if (!from.empty()) {
      backend_->copy(address_, from.data(), from.size() * sizeof(T));
      backend_->synchronize();
    }
  }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> to(bytes_ / sizeof(T));
    backend_->synchronize();
    if (!to.empty()) {
      backend_->copy(to.data(), address_, to.size() * sizeof(T));
      backend_->synchronize();
    }
    return to;
  }
  void poison() { backend_->fill(address_, 0xff, bytes_); }

 private:
  skv::Backend* backend_;
  std::uint64_t bytes_;
  bool pinned_;
  void* address_;
};

template <class T>
std::unique_ptr<Memory> upload(skv::Backend& backend, const std::vector<T>& from) {
  auto memory = std::make_unique<Memory>(backend, from.size() * sizeof(T));
  memory->write(from);
  return memory;
}

struct Shape {
  int query_heads = 32, key_value_heads = 8, head_dim = 128, chunk = 8, rank = 160;
  int value_type = SKV_BF16, landmark_type = SKV_BF16, coefficient_type = SKV_BF16;
  int window = 64, slots = 0, select = 24;
  int pairing = SKV_HALF_SPLIT, rotary_dim = 128, fine_rows = 256;
  double rope_scale = 1.0;

  int group() const { return query_heads / key_value_heads; }
  const char* coefficient_name() const { return coefficient_type == SKV_I8 ? ", i8 coefficients" : ""; }
  skv_geometry geometry() const {
    return {query_heads, key_value_heads, head_dim,         chunk,  rank, SKV_BF16,
            value_type,  landmark_type,   coefficient_type, window, slots};
  }
};

// Rope tables, and the angles that they stand for.
class Tables {
 public:
  Tables(skv::Backend& backend, const Shape& shape, std::int64_t positions) : shape_(shape) {
    const int half = shape.rotary_dim / 2;
    const int coarse_rows = static_cast<int>(positions / shape.fine_rows) + 1;
    std::vector<float> coarse, fine;
    for (int row = 0; row < coarse_rows; ++row) {
      for (int i = 0; i < half; ++i) {
        const double angle = static_cast<double>(row) * shape.fine_rows * frequency(i);
        coarse.push_back(static_cast<float>(std::cos(angle) * shape.rope_scale));
        coarse.push_back(static_cast<float>(std::sin(angle) * shape.rope_scale));
      }
    }
    for (int row = 0; row < shape.fine_rows; ++row) {
      for (int i = 0; i < half; ++i) {
        fine.push_back(static_cast<float>(std::cos(row * frequency(i))));
        fine.push_back(static_cast<float>(std::sin(row * frequency(i))));
      }
    }
    coarse_ = upload(backend, coarse);
    fine_ = upload(backend, fine);
    rope_ = {coarse_->as<float>(),
             fine_->as<float>(),
             coarse_rows,
             shape.fine_rows,
             shape.rotary_dim,
             shape.pairing,
             static_cast<float>(shape.rope_scale)};
  }

  const skv_rope& rope() const { return rope_; }

  void rotate(double* head, std::int64_t position) const {
    const int half = shape_.rotary_dim / 2;
    for (int i = 0; i < half; ++i) {
      const int a = shape_.pairing == SKV_HALF_SPLIT ? i : 2 * i;
      const int b = shape_.pairing == SKV_HALF_SPLIT ? i + half : 2 * i + 1;
      const double angle = static_cast<double>(position) * frequency(i);
      const double c = std::cos(angle) * shape_.rope_scale, s = std::sin(angle) * shape_.rope_scale;
      const double x = head[a], y = head[b];
      head[a] = x * c - y * s;
      head[b] = x * s + y * c;
    }
  }

 private:
  double frequency(int i) const { return std::pow(10000.0, -2.0 * i / shape_.rotary_dim); }

  Shape shape_;
  std::unique_ptr<Memory> coarse_, fine_;
  skv_rope rope_ = {};
};

// One layer of one session of a shadow cache.
class ShadowSession {
 public:
  ShadowSession(skv::Backend& backend, const Shape& shape, std::int64_t chunk_capacity, int outlier_capacity,
                std::mt19937_64& random)
      : shape_(shape), capacity_(chunk_capacity), outlier_capacity_(outlier_capacity) {
    std::normal_distribution<double> normal;
    const std::int64_t k = shape.key_value_heads, d = shape.head_dim, c = shape.chunk;
    const auto fill = [&](std::vector<std::uint16_t>& to, std::int64_t count, double deviation) {
      to.resize(static_cast<std::size_t>(count));
      for (auto& x : to) {
        x = to_bf16(normal(random) * deviation);
      }
    };
    // A falling spectrum, as keys have.
    const auto rank = static_cast<std::size_t>(shape.rank);
    std::vector<double> amounts(static_cast<std::size_t>(chunk_capacity * c) * rank);
    for (std::size_t i = 0; i < amounts.size(); ++i) {
      amounts[i] = normal(random) * 8.0 / std::sqrt(1.0 + static_cast<double>(i % rank));
    }
    coefficient_steps.assign(rank, 1.0);
    if (shape.coefficient_type == SKV_I8) {
      std::fill(coefficient_steps.begin(), coefficient_steps.end(), 0.0);
      for (std::size_t i = 0; i < amounts.size(); ++i) {
        coefficient_steps[i % rank] = std::max(coefficient_steps[i % rank], std::fabs(amounts[i]) / 127);
      }
    }
    resize_coefficients(amounts.size());
    for (std::size_t i = 0; i < amounts.size(); ++i) {
      set_coefficient(i, amounts[i]);
    }
    fill(basis, k * shape.rank * d, 0.3);
    scale_by_steps(basis);
    fill(recent_keys, k * shape.window * d, 1.0);
    fill(recent_values, k * shape.window * d, 1.0);
    fill(outlier_keys, k * outlier_capacity * c * d, 1.5);
    fill(outlier_values, k * outlier_capacity * c * d, 1.0);
    radius.resize(static_cast<std::size_t>(k * chunk_capacity));
    std::uniform_real_distribution<double> uniform;
    for (auto& x : radius) {
      x = uniform(random) < 0.05 ? -1.0F : static_cast<float>(uniform(random));
    }
    if (shape.landmark_type == SKV_I8) {
      landmarks8.resize(static_cast<std::size_t>(k * chunk_capacity * d));
      for (auto& x : landmarks8) {
        x = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
      }
      for (std::int64_t i = 0; i < k * chunk_capacity; ++i) {
        landmark_scales.push_back(static_cast<float>(0.005 + 0.02 * uniform(random)));
      }
    } else {
      fill(landmarks, k * chunk_capacity * d, 1.0);
    }
    if (skv::is_scaled(shape.value_type)) {
      values8.resize(chunk_bytes() * static_cast<std::size_t>(k * chunk_capacity));
      for (auto& x : values8) {
        do {
          x = static_cast<std::uint8_t>(random());
        } while (shape.value_type == SKV_F8_E4M3 && (x & 0x7f) == 0x7f);
      }
      for (std::int64_t i = 0; i < k * chunk_capacity; ++i) {
        const double power = -8 + 3 * uniform(random);
        value_scales.push_back(static_cast<float>(std::exp2(shape.value_type == SKV_F6_E2M3    ? power + 12
                                                            : shape.value_type == SKV_F12_E4M7 ? std::round(power)
                                                                                               : power)));
      }
    } else {
      fill(values, k * chunk_capacity * c * d, 1.0);
    }
    layer_.coefficients = shape.coefficient_type == SKV_I8 ? keep(backend, coefficients8) : keep(backend, coefficients);
    layer_.basis = keep(backend, basis);
    layer_.landmarks = shape.landmark_type == SKV_I8 ? keep(backend, landmarks8) : keep(backend, landmarks);
    layer_.landmark_scales = static_cast<float*>(keep(backend, landmark_scales));
    layer_.radius = static_cast<float*>(keep(backend, radius));
    layer_.outlier_keys = keep(backend, outlier_keys);
    layer_.outlier_values = keep(backend, outlier_values);
    recent_keys_memory = upload(backend, recent_keys);
    recent_values_memory = upload(backend, recent_values);
    layer_.recent_keys = recent_keys_memory->as<void>();
    layer_.recent_values = recent_values_memory->as<void>();
    const std::size_t bytes = chunk_bytes() * static_cast<std::size_t>(k * chunk_capacity);
    host_values = std::make_unique<Memory>(backend, bytes, true);
    if (bytes) {
      std::memcpy(host_values->as<void>(), value_bytes(), bytes);
    }
    layer_.values = host_values->as<void>();
    layer_.value_scales = static_cast<float*>(keep(backend, value_scales));
    fill_moments(random);
    layer_.moments = static_cast<float*>(keep(backend, moments));
    slot_values = std::make_unique<Memory>(backend, slot_bytes() * static_cast<std::size_t>(k * shape.slots));
    slot_chunk = std::make_unique<Memory>(backend, static_cast<std::uint64_t>(k * shape.slots) * 4);
    slot_stamp = std::make_unique<Memory>(backend, static_cast<std::uint64_t>(k * shape.slots) * 4);
    layer_.slot_values = shape.slots ? slot_values->as<void>() : nullptr;
    layer_.slot_chunk = slot_chunk->as<std::int32_t>();
    layer_.slot_stamp = slot_stamp->as<std::int32_t>();
    layer_.chunk_capacity = chunk_capacity;
    layer_.outlier_capacity = outlier_capacity;
    fill_slots(random, 0.0, 1);
  }

  // Puts random chunks below `chunks` into a share of the slots, with random stamps.
  void fill_slots(std::mt19937_64& random, double share, std::int64_t chunks) {
    const int k = shape_.key_value_heads, slots = shape_.slots;
    std::vector<std::int32_t> which(static_cast<std::size_t>(k) * slots, -1), stamps(which.size(), 0);
    std::vector<std::uint8_t> content(slot_bytes() * which.size(), 0xff);
    for (int head = 0; head < k; ++head) {
      std::vector<std::int32_t> order(static_cast<std::size_t>(chunks));
      for (std::size_t i = 0; i < order.size(); ++i) {
        order[i] = static_cast<std::int32_t>(i);
      }
      std::shuffle(order.begin(), order.end(), random);
      std::size_t used = 0;
      for (int slot = 0; slot < slots; ++slot) {
        const auto at = static_cast<std::size_t>(head) * slots + slot;
        stamps[at] = static_cast<std::int32_t>(random() % 7);
        if (used < order.size() && static_cast<double>(random() % 1000) < share * 1000) {
          which[at] = order[used++];
          const std::vector<std::uint8_t> chunk = unpacked(head, which[at]);
          std::memcpy(&content[at * slot_bytes()], chunk.data(), slot_bytes());
        }
      }
    }
    slot_chunk->write(which);
    slot_stamp->write(stamps);
    slot_values->write(content);
  }

  const skv_shadow_layer& layer() const { return layer_; }
  std::int64_t chunk_elements() const { return static_cast<std::int64_t>(shape_.chunk) * shape_.head_dim; }
  std::size_t chunk_bytes() const {
    return static_cast<std::size_t>(skv::value_bytes(shape_.value_type, chunk_elements()));
  }
  std::size_t slot_bytes() const {
    return static_cast<std::size_t>(skv::value_bytes(skv::slot_type(shape_.value_type), chunk_elements()));
  }
  const std::uint8_t* value_bytes() const {
    return skv::is_scaled(shape_.value_type) ? values8.data() : reinterpret_cast<const std::uint8_t*>(values.data());
  }
  // What a slot holds of a chunk of a head.
  std::vector<std::uint8_t> unpacked(std::int64_t head, std::int64_t chunk) const {
    const std::int64_t place = head * capacity_ + chunk;
    const std::uint8_t* const from = value_bytes() + static_cast<std::size_t>(place) * chunk_bytes();
    std::vector<std::uint8_t> to(slot_bytes());
    if (!skv::is_packed(shape_.value_type)) {
      std::copy(from, from + to.size(), to.begin());
    }
    for (std::int64_t i = 0; skv::is_packed(shape_.value_type) && i < chunk_elements(); ++i) {
      const unsigned code = check::packed_code(shape_.value_type, from, chunk_elements(), i);
      if (shape_.value_type == SKV_F6_E2M3) {
        to[static_cast<std::size_t>(i)] = check::e4m3_of_six(code);
      } else {
        const double number = check::packed_format(shape_.value_type).number(code);
        const std::uint16_t bits = to_bf16(number * value_scales[static_cast<std::size_t>(place)]);
        std::memcpy(&to[static_cast<std::size_t>(i) * 2], &bits, 2);
      }
    }
    return to;
  }

  // Coefficient `at` [token][r], as it is stored: of I8 the whole number. What is set is in units of the direction.
  double coefficient(std::size_t at) const {
    return shape_.coefficient_type == SKV_I8 ? coefficients8[at] : from_bf16(coefficients[at]);
  }
  void set_coefficient(std::size_t at, double amount) {
    if (shape_.coefficient_type == SKV_I8) {
      const double step = coefficient_steps[at % static_cast<std::size_t>(shape_.rank)];
      coefficients8[at] = static_cast<std::int8_t>(std::clamp(std::nearbyint(amount / step), -127.0, 127.0));
    } else {
      coefficients[at] = to_bf16(amount);
    }
  }
  // Brings changed coefficients to the device.
  void write_coefficients(skv::Backend& backend) const {
    if (shape_.coefficient_type == SKV_I8) {
      backend.copy(layer_.coefficients, coefficients8.data(), coefficients8.size());
    } else {
      backend.copy(layer_.coefficients, coefficients.data(), coefficients.size() * 2);
    }
  }

  double landmark(std::int64_t head, std::int64_t chunk, int d) const {
    const auto at = static_cast<std::size_t>((head * capacity_ + chunk) * shape_.head_dim + d);
    return shape_.landmark_type == SKV_I8
               ? landmarks8[at] * static_cast<double>(landmark_scales[at / static_cast<std::size_t>(shape_.head_dim)])
               : from_bf16(landmarks[at]);
  }
  double value(std::int64_t head, std::int64_t position, int d) const {
    const auto at = static_cast<std::size_t>((head * capacity_ * shape_.chunk + position) * shape_.head_dim + d);
    if (skv::is_packed(shape_.value_type)) {
      const auto elements = static_cast<std::size_t>(chunk_elements());
      const std::size_t place = at / elements;
      return check::packed_number(shape_.value_type, values8.data() + place * chunk_bytes(), chunk_elements(),
                                  static_cast<std::int64_t>(at % elements)) *
             value_scales[place];
    }
    return shape_.value_type == SKV_F8_E4M3
               ? from_e4m3(values8[at]) * value_scales[at / static_cast<std::size_t>(shape_.head_dim * shape_.chunk)]
               : from_bf16(values[at]);
  }
  // The coefficients of a token times a head's part of one of the two bases; in size, if given, the magnitudes of the
  // terms.
  std::vector<double> product(int head, std::int64_t position, const std::vector<std::uint16_t>& of,
                              std::vector<double>* size = nullptr) const {
    const auto d = static_cast<std::size_t>(shape_.head_dim);
    std::vector<double> sums(d, 0.0), sizes(d, 0.0);
    for (int i = 0; i < shape_.rank; ++i) {
      const double a = coefficient(static_cast<std::size_t>(position * shape_.rank + i));
      const auto row = (static_cast<std::size_t>(head) * shape_.rank + static_cast<std::size_t>(i)) * d;
      for (std::size_t e = 0; e < d; ++e) {
        const double term = a * from_bf16(of[row + e]);
        sums[e] += term;
        sizes[e] += std::fabs(term);
      }
    }
    if (size) {
      *size = sizes;
    }
    return sums;
  }
  std::vector<double> rebuilt_key(int head, std::int64_t position, const Tables& tables) const {
    std::vector<double> key = product(head, position, basis);
    tables.rotate(key.data(), position);
    return key;
  }

  // Values of coefficients, of about the size of the session's own.
  void add_value_basis(skv::Backend& backend, std::mt19937_64& random) {
    std::normal_distribution<double> normal(0.0, 0.05);
    value_basis.resize(basis.size());
    for (auto& x : value_basis) {
      x = to_bf16(normal(random));
    }
    scale_by_steps(value_basis);
    layer_.value_basis = keep(backend, value_basis);
  }

  std::vector<std::uint16_t> coefficients, basis, landmarks, recent_keys, recent_values, outlier_keys, outlier_values,
      values, value_basis;
  std::vector<std::int8_t> landmarks8, coefficients8;
  std::vector<double> coefficient_steps;  // [r]: what one of a direction's I8 coefficients stands for, otherwise 1
  std::vector<std::uint8_t> values8;
  std::vector<float> radius, landmark_scales, value_scales, moments;
  std::unique_ptr<Memory> recent_keys_memory, recent_values_memory, host_values, slot_values, slot_chunk, slot_stamp;

 private:
  void resize_coefficients(std::size_t count) {
    shape_.coefficient_type == SKV_I8 ? coefficients8.resize(count) : coefficients.resize(count);
  }
  // Rows of a basis [K][r][D], times the steps of their directions.
  void scale_by_steps(std::vector<std::uint16_t>& rows) const {
    const auto rank = static_cast<std::size_t>(shape_.rank), d = static_cast<std::size_t>(shape_.head_dim);
    for (std::size_t i = 0; i < rows.size() && shape_.coefficient_type == SKV_I8; ++i) {
      rows[i] = to_bf16(from_bf16(rows[i]) * coefficient_steps[i / d % rank]);
    }
  }

  // Of tokens that are not the session's own: keys around a mean, and values that follow them in part.
  void fill_moments(std::mt19937_64& random) {
    constexpr int kTokens = 40;
    const auto dim = static_cast<std::size_t>(shape_.head_dim);
    const skv::MomentLayout layout(shape_.head_dim);
    std::normal_distribution<double> normal;
    for (int head = 0; head < shape_.key_value_heads; ++head) {
      std::vector<double> mean(dim), sums(static_cast<std::size_t>(layout.floats), 0.0);
      for (double& x : mean) {
        x = 0.5 * normal(random);
      }
      for (int t = 0; t < kTokens; ++t) {
        const double strength = normal(random);
        std::vector<double> key(dim), value(dim);
        for (std::size_t i = 0; i < dim; ++i) {
          key[i] = mean[i] * (1 + strength) + 0.5 * normal(random);
          value[i] = 0.3 + 0.5 * normal(random) + strength * mean[dim - 1 - i];
        }
        for (std::size_t i = 0; i < dim; ++i) {
          for (std::size_t j = 0; j < dim; ++j) {
            sums[i * dim + j] += value[i] * key[j];
          }
          sums[static_cast<std::size_t>(layout.keys) + i] += key[i];
          sums[static_cast<std::size_t>(layout.values) + i] += value[i];
        }
        sums[static_cast<std::size_t>(layout.count)] += 1;
      }
      moments.insert(moments.end(), sums.begin(), sums.end());
    }
  }

  template <class T>
  void* keep(skv::Backend& backend, const std::vector<T>& data) {
    kept_.push_back(upload(backend, data));
    return kept_.back()->as<void>();
  }

  Shape shape_;
  std::int64_t capacity_;
  std::int64_t outlier_capacity_;
  skv_shadow_layer layer_ = {};
  std::vector<std::unique_ptr<Memory>> kept_;
};

// A token as attention sees it.
struct OracleToken {
  std::vector<double> key, value;
  bool rounded_key;  // the kernel rounds it to bf16
};

// What stands for tokens left out, as attention sees it: one more part of the softmax. Tolerances are bounds.
struct OracleRest {
  double log_weight, log_weight_tolerance;
  std::vector<double> value, tolerance;
};

// moments: of one head, with tokens in them. query_unit: as below.
inline OracleRest oracle_rest(const std::vector<double>& query, const float* moments, double log_weight,
                              double log_weight_tolerance, double query_unit) {
  const std::size_t dim = query.size();
  const skv::MomentLayout layout(static_cast<std::int64_t>(dim));
  const double count = moments[layout.count], root = std::sqrt(static_cast<double>(dim));
  OracleRest rest = {log_weight, log_weight_tolerance, {}, {}};
  double along = 0, along_size = 0;  // mean(k) . q / sqrt(D)
  for (std::size_t j = 0; j < dim; ++j) {
    const double term = moments[static_cast<std::size_t>(layout.keys) + j] / count * query[j] / root;
    along += term;
    along_size += std::fabs(term);
  }
  for (std::size_t i = 0; i < dim; ++i) {
    const double mean = moments[static_cast<std::size_t>(layout.values) + i] / count;
    double sum = 0, size = 0;
    for (std::size_t j = 0; j < dim; ++j) {
      const double term = moments[i * dim + j] / count * query[j] / root;
      sum += term;
      size += std::fabs(term);
    }
    rest.value.push_back(mean + (sum - mean * along));
    // Each term is rounded a few times, and once for each that is added after it.
    const double roundings = (static_cast<double>(dim) + 8) * kF32Unit + query_unit;
    rest.tolerance.push_back(roundings * (size + std::fabs(mean) * (along_size + 1)));
  }
  return rest;
}

// Attention of one query head and the error that its number formats may bring (6 standard deviations).
struct OracleHead {
  std::vector<double> output, tolerance;
  double log_sum_exp = -INFINITY, log_sum_exp_tolerance = 0;
};

// query_unit: relative rounding error of queries; weight_unit: of softmax weights; output_unit: of the output.
inline OracleHead oracle_attention(const std::vector<double>& query, const std::vector<OracleToken>& tokens,
                                   double query_unit, double weight_unit, double output_unit,
                                   const std::vector<OracleRest>& rests = {}) {
  const std::size_t d = query.size();
  OracleHead head;
  head.output.assign(d, 0.0);
  head.tolerance.assign(d, 0.0);
  if (tokens.empty() && rests.empty()) {
    return head;
  }
  const double root = std::sqrt(static_cast<double>(d));
  // The rounding of a query is the same for all tokens: what it does to their scores adds up before it is squared. Not
  // worth the time where little of a query is lost.
  const bool rounded_query = query_unit > kSplitUnit;
  // Of the tokens, and behind them of the rests.
  std::vector<double> scores, errors;
  std::vector<const std::vector<double>*> values;
  double largest = -INFINITY;
  for (const auto& token : tokens) {
    double dot = 0, squares = 0;
    for (std::size_t i = 0; i < d; ++i) {
      dot += query[i] * token.key[i];
      squares += query[i] * query[i] * token.key[i] * token.key[i];
    }
    const double key_unit = token.rounded_key ? kBf16Unit : 0, own_unit = rounded_query ? 0 : query_unit;
    // Roundings are uniform at most up to their unit: their deviation is a root of three smaller. f32 sums add theirs.
    const double deviation = std::sqrt((own_unit * own_unit + key_unit * key_unit) / 3 * squares) +
                             4 * kF32Unit * std::sqrt(static_cast<double>(d) * squares) + 4 * kF32Unit * std::fabs(dot);
    scores.push_back(dot / root);
    errors.push_back(deviation / root);
    values.push_back(&token.value);
    largest = std::max(largest, scores.back());
  }
  for (const OracleRest& rest : rests) {
    scores.push_back(rest.log_weight);
    errors.push_back((rest.log_weight_tolerance + 4 * kF32Unit * (1 + std::fabs(rest.log_weight))) / 6);
    values.push_back(&rest.value);
    largest = std::max(largest, scores.back());
  }
  double sum = 0;
  for (double& score : scores) {
    score = std::exp(score - largest);
    sum += score;
  }
  for (std::size_t t = 0; t < scores.size(); ++t) {
    scores[t] /= sum;
    for (std::size_t i = 0; i < d; ++i) {
      head.output[i] += scores[t] * (*values[t])[i];
    }
  }
  const auto query_variance = [&](const std::vector<double>& keys) {
    double variance = 0;
    for (std::size_t j = 0; j < d; ++j) {
      const double term = query[j] * keys[j] / root;
      variance += query_unit * query_unit / 3 * term * term;
    }
    return variance;
  };
  std::vector<double> mean_key(d, 0.0), away_key(d, 0.0);
  for (std::size_t t = 0; rounded_query && t < tokens.size(); ++t) {
    for (std::size_t j = 0; j < d; ++j) {
      mean_key[j] += scores[t] * tokens[t].key[j];
    }
  }
  double lse_variance = query_variance(mean_key);
  for (std::size_t t = 0; t < scores.size(); ++t) {
    lse_variance += scores[t] * scores[t] * errors[t] * errors[t];
  }
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; rounded_query && j < d; ++j) {
      away_key[j] = -head.output[i] * mean_key[j];
    }
    for (std::size_t t = 0; rounded_query && t < tokens.size(); ++t) {
      const double weighted = scores[t] * tokens[t].value[i];
      for (std::size_t j = 0; j < d; ++j) {
        away_key[j] += weighted * tokens[t].key[j];
      }
    }
    double variance = query_variance(away_key), magnitude = 0;
    for (std::size_t t = 0; t < scores.size(); ++t) {
      const double value = (*values[t])[i], away = scores[t] * (value - head.output[i]);
      // The weight of a rest stays in f32.
      const double weight = t < tokens.size() ? scores[t] * value * weight_unit : 0.0;
      variance += away * away * errors[t] * errors[t] + weight * weight / 3;
      magnitude += scores[t] * std::fabs(value);
    }
    // exp2 and the running rescaling are good to a few f32 units, relative.
    head.tolerance[i] = 6 * std::sqrt(variance) + output_unit * std::fabs(head.output[i]) + 32 * kF32Unit * magnitude;
    for (std::size_t r = 0; r < rests.size(); ++r) {
      head.tolerance[i] += scores[tokens.size() + r] * rests[r].tolerance[i];
    }
  }
  head.log_sum_exp = largest + std::log(sum);
  head.log_sum_exp_tolerance =
      6 * std::sqrt(lse_variance) + 16 * kF32Unit * (1 + std::fabs(largest) + std::fabs(head.log_sum_exp));
  return head;
}

}  // namespace fixture
