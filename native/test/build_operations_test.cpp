// The operations that build a cache, except the factorization, against their definitions in double precision.
#include <limits>
#include <numeric>

#include "coefficient_layout.h"
#include "operands.h"

namespace {

using check::Array;
using check::Bench;
using check::RopeTables;
using skv::cpu::BFloat16;
using skv::cpu::from_float;
using skv::cpu::to_float;

constexpr std::int32_t kTypes[] = {SKV_F32, SKV_BF16, SKV_F16};

struct Shape {
  int heads, dim, chunk;
};
constexpr Shape kShapes[] = {{2, 128, 8}, {3, 96, 16}, {1, 64, 8}, {5, 38, 16}, {2, 256, 8}, {1, 2, 8}};

// Tokens of a few chunks around a common direction, as keys are, in a ring that wraps.
Array keys_of(std::int32_t type, const Shape& s, std::int64_t capacity, std::mt19937_64& random) {
  Array ring(type, s.heads * capacity * s.dim);
  std::normal_distribution<double> normal;
  std::vector<double> common(static_cast<std::size_t>(s.dim));
  for (double& x : common) {
    x = 2 * normal(random);
  }
  for (std::int64_t i = 0; i < ring.count(); ++i) {
    ring.set(i, common[static_cast<std::size_t>(i % s.dim)] + normal(random));
  }
  return ring;
}

void test_landmarks(Bench& bench, std::int32_t type, std::int32_t landmark_type, const Shape& s,
                    std::mt19937_64& random) {
  const std::int64_t capacity = 7 * s.chunk + 3, first = 11, chunks = 7, chunk_capacity = 20;
  Array ring = keys_of(type, s, capacity, random);
  Array landmarks(landmark_type, s.heads * chunk_capacity * s.dim), scales(SKV_F32, s.heads * chunk_capacity),
      radius(SKV_F32, s.heads * chunk_capacity), cosine(SKV_F32, s.heads * chunk_capacity);
  skv_landmark_build_params p = {};
  p.struct_size = sizeof(p);
  p.storage_type = type;
  p.landmark_type = landmark_type;
  p.key_value_heads = s.heads;
  p.head_dim = s.dim;
  p.chunk = s.chunk;
  p.rotated_keys = ring.data();
  p.capacity = capacity;
  p.first_chunk = first;
  p.chunks = chunks;
  p.landmarks = landmarks.data();
  p.landmark_scales = landmark_type == SKV_I8 ? scales.as<float>() : nullptr;
  p.radius = radius.as<float>();
  p.cosine = cosine.as<float>();
  p.chunk_capacity = chunk_capacity;
  auto execution = bench.with(0);
  skv::cpu::landmark_build(p, execution);
  bool right = true, untouched = true;
  for (int head = 0; head < s.heads; ++head) {
    for (std::int64_t chunk = 0; chunk < chunk_capacity; ++chunk) {
      const std::int64_t place = head * chunk_capacity + chunk;
      if (chunk < first || chunk >= first + chunks) {
        untouched &= radius.untouched(place) && cosine.untouched(place) && landmarks.untouched(place * s.dim);
        continue;
      }
      const auto key = [&](int t, int i) {
        return ring[(head * capacity + (chunk * s.chunk + t) % capacity) * s.dim + i];
      };
      std::vector<double> mean(static_cast<std::size_t>(s.dim), 0.0);
      double largest = 0, mean_squares = 0, magnitude = 0;
      for (int i = 0; i < s.dim; ++i) {
        double& m = mean[static_cast<std::size_t>(i)];
        for (int t = 0; t < s.chunk; ++t) {
          m += key(t, i) / s.chunk;
          magnitude = std::max(magnitude, std::fabs(key(t, i)));
        }
        largest = std::max(largest, std::fabs(m));
        mean_squares += m * m;
      }
      const double step = landmark_type == SKV_I8 ? scales[place] : 1;
      if (landmark_type == SKV_I8) {
        right &= check::near(step, largest / 127, 0x1p-24 * (s.chunk + 2) * magnitude / 127);
      }
      double worst_distance = 0, worst_cosine = 2;
      for (int t = 0; t < s.chunk; ++t) {
        double distance = 0, product = 0, squares = 0;
        for (int i = 0; i < s.dim; ++i) {
          const double off = key(t, i) - landmarks[place * s.dim + i] * step;  // from the mean as stored
          distance += off * off;
          product += key(t, i) * mean[static_cast<std::size_t>(i)];
          squares += key(t, i) * key(t, i);
        }
        worst_distance = std::max(worst_distance, std::sqrt(distance));
        worst_cosine = std::min(worst_cosine, product / std::sqrt(squares * mean_squares));
      }
      for (int i = 0; i < s.dim; ++i) {
        const double m = mean[static_cast<std::size_t>(i)];
        const double sum_error = 0x1p-24 * (s.chunk + 1) * magnitude;
        // A byte is within half a step of its number.
        const double tolerance = landmark_type == SKV_I8 ? 0.5 * step * (1 + 1e-4) + sum_error
                                                         : check::tolerance(landmark_type, m, s.chunk + 1, magnitude);
        right &= check::near(landmarks[place * s.dim + i] * step, m, tolerance);
      }
      right &= check::near(radius[place], worst_distance, 0x1p-24 * (s.dim + 4) * (worst_distance + magnitude));
      right &= check::near(
          cosine[place], worst_cosine,
          0x1p-24 *
              (3 * s.dim + s.chunk * std::sqrt(static_cast<double>(s.dim)) * magnitude / std::sqrt(mean_squares) + 8));
    }
  }
  CHECK(right);
  CHECK(untouched);
  CHECK(landmarks.guard_intact() && radius.guard_intact() && cosine.guard_intact() && scales.guard_intact());
}

void test_outliers(Bench& bench, std::mt19937_64& random) {
  for (const std::int32_t count : {0, 1, 7, 300, 1000}) {
    const int heads = 3;
    const std::int64_t chunks = 1000, chunk_capacity = 1010;
    Array cosine(SKV_F32, heads * chunk_capacity), radius(SKV_F32, heads * chunk_capacity);
    for (std::int64_t i = 0; i < cosine.count(); ++i) {
      // Many ties, and something better behind the end that must not be taken.
      cosine.set(i, i % chunk_capacity >= chunks ? -1 : static_cast<double>(random() % 64) / 64);
      radius.set(i, 1);
    }
    cosine.set(chunk_capacity + 500, std::nan(""));
    std::vector<std::int32_t> ids(static_cast<std::size_t>(heads * count) + 1, -7);
    skv_outlier_select_params p = {};
    p.struct_size = sizeof(p);
    p.key_value_heads = heads;
    p.cosine = cosine.as<float>();
    p.chunks = chunks;
    p.chunk_capacity = chunk_capacity;
    p.count = count;
    p.ids = ids.data();
    p.radius = radius.as<float>();
    auto execution = bench.with(0);
    skv::cpu::outlier_select(p, execution);
    bool right = true;
    for (int head = 0; head < heads; ++head) {
      std::vector<std::int32_t> order(static_cast<std::size_t>(chunks));
      std::iota(order.begin(), order.end(), 0);
      const auto value = [&](std::int32_t id) {
        const double x = cosine[head * chunk_capacity + id];
        return std::isnan(x) ? -std::numeric_limits<double>::infinity() : x;
      };
      std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return value(a) < value(b); });
      order.resize(static_cast<std::size_t>(count));
      std::sort(order.begin(), order.end());
      for (std::int32_t i = 0; i < count; ++i) {
        right &= ids[static_cast<std::size_t>(head * count + i)] == order[static_cast<std::size_t>(i)];
      }
      for (std::int32_t id = 0; id < chunk_capacity; ++id) {
        const bool chosen = std::binary_search(order.begin(), order.end(), id);
        right &= radius[head * chunk_capacity + id] == (chosen ? -1 : 1);
      }
    }
    CHECK(right);
    CHECK_EQUAL(ids.back(), -7);
  }
}

void test_gather(Bench& bench, std::int32_t type, const Shape& s, std::mt19937_64& random) {
  const std::int64_t capacity = 6 * s.chunk + 5, target_capacity = 9, target_first = 2;
  const std::int32_t count = 4;
  Array ring = keys_of(type, s, capacity, random);
  Array target(type, s.heads * target_capacity * s.chunk * s.dim);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < s.heads * count; ++i) {
    ids.push_back(static_cast<std::int32_t>(random() % 1000));
  }
  skv_chunk_gather_params p = {};
  p.struct_size = sizeof(p);
  p.type = type;
  p.key_value_heads = s.heads;
  p.head_dim = s.dim;
  p.chunk = s.chunk;
  p.source = ring.data();
  p.capacity = capacity;
  p.ids = ids.data();
  p.count = count;
  p.target = target.data();
  p.target_first = target_first;
  p.target_capacity = target_capacity;
  auto execution = bench.with(0);
  skv::cpu::chunk_gather(p, execution);
  bool right = true;
  for (std::int64_t i = 0; i < target.count(); ++i) {
    const std::int64_t place = i / s.dim / s.chunk % target_capacity, head = i / s.dim / s.chunk / target_capacity;
    const std::int64_t t = i / s.dim % s.chunk;
    if (place < target_first || place >= target_first + count) {
      right &= target.untouched(i);
    } else {
      const std::int64_t id = ids[static_cast<std::size_t>(head * count + place - target_first)];
      right &= target[i] == ring[(head * capacity + (id * s.chunk + t) % capacity) * s.dim + i % s.dim];
    }
  }
  CHECK(right);
  CHECK(target.guard_intact());
  ids[1] = -3;
  skv_status status = SKV_OK;
  try {
    skv::cpu::chunk_gather(p, execution);
  } catch (const skv::Error& error) {
    status = error.status();
  }
  CHECK_EQUAL(status, SKV_INVALID_ARGUMENT);
}

void test_values(Bench& bench, std::int32_t type, std::int32_t value_type, const Shape& s, std::mt19937_64& random) {
  const std::int64_t capacity = 5 * s.chunk + 1, first = 3, chunks = 5, chunk_capacity = 10;
  Array ring(type, s.heads * capacity * s.dim);
  ring.fill(random);
  for (std::int64_t i = 0; i < ring.count(); i += 3) {
    ring.set(i, std::ldexp(ring[i], -static_cast<int>(random() % 24)));  // far below the largest, too
  }
  for (int i = 0; i < s.dim * s.chunk; ++i) {
    ring.set(((first * s.chunk + i / s.dim) % capacity) * s.dim + i % s.dim, 0);  // a chunk of zeros
  }
  Array values(value_type, s.heads * chunk_capacity * s.chunk * s.dim, static_cast<std::int64_t>(s.chunk) * s.dim),
      scales(SKV_F32, s.heads * chunk_capacity);
  skv_value_store_params p = {};
  p.struct_size = sizeof(p);
  p.storage_type = type;
  p.value_type = value_type;
  p.key_value_heads = s.heads;
  p.head_dim = s.dim;
  p.chunk = s.chunk;
  p.source = ring.data();
  p.capacity = capacity;
  p.first_chunk = first;
  p.chunks = chunks;
  p.values = values.data();
  p.value_scales = scales.as<float>();
  p.chunk_capacity = chunk_capacity;
  auto execution = bench.with(0);
  skv::cpu::value_store(p, execution);
  bool right = true;
  for (std::int64_t place = 0; place < s.heads * chunk_capacity; ++place) {
    const std::int64_t head = place / chunk_capacity, chunk = place % chunk_capacity;
    const bool written = chunk >= first && chunk < first + chunks;
    const auto source = [&](std::int64_t i) {
      return ring[(head * capacity + (chunk * s.chunk + i / s.dim) % capacity) * s.dim + i % s.dim];
    };
    double largest = 0;
    for (std::int64_t i = 0; i < s.chunk * s.dim; ++i) {
      largest = std::max(largest, std::fabs(source(i)));
    }
    // Rounded to BF16 the largest may reach the next power of two.
    const auto rounded = static_cast<double>(to_float(from_float<BFloat16>(static_cast<float>(largest))));
    const double scale = value_type == SKV_F12_E4M7  ? std::ldexp(1.0, largest > 0 ? std::ilogb(rounded) - 8 : -120)
                         : value_type == SKV_F6_E2M3 ? largest / (7.5 / 64)
                                                     : largest / 448;
    if (skv::is_scaled(value_type)) {
      right &= written ? check::near(scales[place], scale, 0x1p-23 * scale) : scales.untouched(place);
    }
    for (std::int64_t i = 0; i < s.chunk * s.dim; ++i) {
      const std::int64_t at = place * s.chunk * s.dim + i;
      if (!written) {
        right &= values.untouched(at);
      } else if (!skv::is_scaled(value_type)) {
        right &= values[at] == source(i);
      } else if (value_type == SKV_F12_E4M7) {
        // BF16, down to 2^-14 of the largest's power of two; below, the steps of that.
        const double bf16 = to_float(from_float<BFloat16>(static_cast<float>(source(i))));
        const bool exact = std::fabs(bf16) >= std::ldexp(scale, 8 - 14);
        right &= check::near(values[at] * scale, exact ? bf16 : source(i), exact ? 0 : std::ldexp(scale, 8 - 22));
      } else if (value_type == SKV_F6_E2M3) {
        // Half a step: a sixteenth of the value at most, or half the smallest step.
        const double tolerance = std::max(0x1p-4 * std::fabs(source(i)), 0x1p-10 * scale);
        right &= check::near(values[at] * scales[place], source(i), tolerance * (1 + 1e-6));
      } else {
        // Half a step of e4m3 at that magnitude, or of its subnormals, in units of the scale.
        const double tolerance = std::max(check::roundoff(SKV_F8_E4M3) * std::fabs(source(i)), 0x1p-10 * scales[place]);
        right &= check::near(values[at] * scales[place], source(i), tolerance * (1 + 1e-6));
      }
    }
  }
  CHECK(right);
  CHECK(values.guard_intact() && scales.guard_intact());
}

// Whole numbers up to the largest, as coefficients of eight bits are.
void fill_bytes(Array& coefficients, std::mt19937_64& random) {
  std::normal_distribution<double> normal(0, 40);
  for (std::int64_t i = 0; i < coefficients.count(); ++i) {
    coefficients.set(i, std::clamp(std::nearbyint(normal(random)), -127.0, 127.0));
  }
}

void test_rebuild(Bench& bench, std::int32_t type, std::int32_t coefficient_type, const Shape& s, int rank,
                  std::mt19937_64& random) {
  const RopeTables tables(s.dim, SKV_INTERLEAVED, 4000, 10000.0, 1.0);
  const std::int64_t first = 117, count = 61, capacity = 64;
  Array coefficients(coefficient_type, (first + count) * rank), basis(type, s.heads * rank * s.dim),
      keys(type, s.heads * capacity * s.dim);
  const bool bytes = coefficient_type == SKV_I8;
  if (bytes) {
    fill_bytes(coefficients, random);
  } else {
    coefficients.fill(random);
  }
  basis.fill(random, (bytes ? 1.0 / 40 : 1.0) / std::sqrt(static_cast<double>(s.heads * s.dim)));
  skv_rebuild_keys_params p = {};
  p.struct_size = sizeof(p);
  p.type = type;
  p.coefficient_type = coefficient_type;
  p.coefficients = coefficients.data();
  p.basis = basis.data();
  p.key_value_heads = s.heads;
  p.head_dim = s.dim;
  p.rank = rank;
  p.first_position = first;
  p.count = count;
  p.rotated_keys = keys.data();
  p.capacity = capacity;
  p.rope = tables.table;
  auto execution = bench.with(skv::cpu::rebuild_keys_workspace(p, bench.traits()));
  skv::cpu::rebuild_keys(p, execution);
  bool right = true;
  for (std::int64_t t = 0; t < capacity; ++t) {
    const std::int64_t position = first + t;
    for (int head = 0; head < s.heads; ++head) {
      const std::int64_t row = (head * capacity + position % capacity) * s.dim;
      if (t >= count) {
        right &= keys.untouched(row);
        continue;
      }
      std::vector<double> key(static_cast<std::size_t>(s.dim), 0.0), bound(static_cast<std::size_t>(s.dim), 0.0);
      for (int j = 0; j < rank; ++j) {
        for (int i = 0; i < s.dim; ++i) {
          const double product = coefficients[position * rank + j] * basis[(head * rank + j) * s.dim + i];
          key[static_cast<std::size_t>(i)] += product;
          bound[static_cast<std::size_t>(i)] += std::fabs(product);
        }
      }
      const double largest = *std::max_element(bound.begin(), bound.end());
      const auto rotated = tables.rotate(key, position);
      for (int i = 0; i < s.dim; ++i) {
        const double e = rotated[static_cast<std::size_t>(i)];
        // The sum, then a rotation that mixes two of them with rounded tables.
        right &= check::near(keys[row + i], e, check::tolerance(type, e, 2 * (rank + 8), largest));
      }
    }
  }
  CHECK(right);
  CHECK(keys.guard_intact());
}

void test_project(Bench& bench, std::int32_t type, std::int32_t coefficient_type, const Shape& s, int rank,
                  std::int64_t count, bool scaled, std::mt19937_64& random) {
  const std::int64_t width = static_cast<std::int64_t>(s.heads) * s.dim, stride = width + 3;
  const bool bytes = coefficient_type == SKV_I8;
  Array keys(type, count * stride), basis(type, s.heads * rank * s.dim), coefficients(coefficient_type, count * rank),
      residual(SKV_F32, count), steps(SKV_F32, rank);
  keys.fill(random);
  for (std::int64_t i = 0; i < width; ++i) {
    keys.set(i, 0);  // a key of zeros
  }
  // Not orthonormal on purpose: the operation is defined for any basis.
  basis.fill(random, 1 / std::sqrt(static_cast<double>(width)));
  std::vector<float> scales;
  for (int head = 0; head < s.heads; ++head) {
    scales.push_back(scaled ? std::ldexp(1.0F, static_cast<int>(random() % 5) - 2) : 1.0F);
  }
  // Steps of which some make coefficients too large, and a direction that is not there.
  std::uniform_real_distribution<double> share(0.5, 3);
  for (int j = 0; j < rank && bytes; ++j) {
    double squares = 0;  // of the products' deviation
    for (std::int64_t i = 0; i < width; ++i) {
      const double scale = scales[static_cast<std::size_t>(i / s.dim)];
      squares += std::pow(basis[(i / s.dim * rank + j) * s.dim + i % s.dim] * scale * scale, 2);
    }
    steps.set(j, j == 3 ? 0 : std::sqrt(std::sqrt(squares) / 127 * share(random)));
    for (std::int64_t i = 0; i < width && j == 3; ++i) {
      basis.set((i / s.dim * rank + j) * s.dim + i % s.dim, 0);
    }
    if (const std::int64_t refined = refined_column(j, rank); refined >= 0) {
      steps.set(j, steps[refined] / 254);
      for (std::int64_t i = 0; i < width; ++i) {
        const std::int64_t row = i / s.dim * rank;
        basis.set((row + j) * s.dim + i % s.dim, basis[(row + refined) * s.dim + i % s.dim] / 254);
      }
    }
  }
  skv_low_rank_project_params p = {};
  p.struct_size = sizeof(p);
  p.type = type;
  p.coefficient_type = coefficient_type;
  p.coefficient_scales = bytes ? steps.as<float>() : nullptr;
  p.head_scales = scaled ? scales.data() : nullptr;
  p.keys = keys.data();
  p.count = count;
  p.key_stride = stride;
  p.key_value_heads = s.heads;
  p.head_dim = s.dim;
  p.rank = rank;
  p.basis = basis.data();
  p.coefficients = coefficients.data();
  p.residual = residual.as<float>();
  auto execution = bench.with(skv::cpu::low_rank_project_workspace(p, bench.traits()));
  skv::cpu::low_rank_project(p, execution);
  double longest = 0;  // element of the basis
  for (std::int64_t i = 0; i < basis.count(); ++i) {
    longest = std::max(longest, std::fabs(basis[i]));
  }
  bool right = true;
  std::int64_t clamped = 0;
  for (std::int64_t t = 0; t < count; ++t) {
    std::vector<double> off(static_cast<std::size_t>(width));
    double whole = 0, rebuilt_bound = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      off[static_cast<std::size_t>(i)] = keys[t * stride + i];
      whole += keys[t * stride + i] * keys[t * stride + i];
    }
    for (int j = 0; j < rank; ++j) {
      double sum = 0, bound = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        const double b = basis[(i / s.dim * rank + j) * s.dim + i % s.dim];
        const double scale = scales[static_cast<std::size_t>(i / s.dim)],
                     term = keys[t * stride + i] * b * scale * scale;
        sum += term;
        bound += std::fabs(term);
        off[static_cast<std::size_t>(i)] -= coefficients[t * rank + j] * b;  // as stored
      }
      const double got = coefficients[t * rank + j];
      if (bytes) {
        const double unit = steps[j] * steps[j];
        double exact = unit > 0 ? sum / unit : 0;
        if (const std::int64_t refined = refined_column(j, rank); refined >= 0 && unit > 0) {
          exact -= coefficients[t * rank + refined] * steps[refined] / steps[j];
        }
        const double roundings = unit > 0 ? static_cast<double>(width + 4) * 0x1p-24 * bound / unit : 0;
        right &= check::near(got, std::clamp(exact, -127.0, 127.0), unit > 0 ? 0.5 + roundings : 0);
        clamped += std::fabs(exact) > 130;
      } else {
        right &= check::near(got, sum, check::tolerance(type, sum, static_cast<double>(width), bound));
      }
      rebuilt_bound += std::fabs(got) * (bytes ? longest : 1);
    }
    double missed = 0;
    for (const double x : off) {
      missed += x * x;
    }
    const double expected = whole > 0 ? missed / whole : 0;
    // An error of each rebuilt element of rank roundings, twice in the square, and the sums of squares.
    const double element_error = 0x1p-24 * rank * rebuilt_bound;
    const double tolerance =
        0x1p-24 * static_cast<double>(2 * width + 8) * expected +
        (whole > 0 ? 2 * std::sqrt(missed * static_cast<double>(width)) * element_error / whole : 0);
    right &= check::near(residual[t], expected, tolerance);
  }
  CHECK(right);
  CHECK(!bytes || count == 1 || clamped > 0);
  CHECK(coefficients.guard_intact() && residual.guard_intact());
  const Array before = coefficients;
  p.residual = nullptr;
  skv::cpu::Execution again = bench.with(skv::cpu::low_rank_project_workspace(p, bench.traits()));
  skv::cpu::low_rank_project(p, again);
  CHECK(coefficients == before);
}

}  // namespace

int main() {
  std::mt19937_64 random = check::fresh_generator();
  const int best = static_cast<int>(skv::cpu::best_instruction_set());
  for (int set = 1; set <= best; ++set) {
    Bench bench(set, set);
    test_outliers(bench, random);
    for (const std::int32_t type : kTypes) {
      for (const Shape& shape : kShapes) {
        test_landmarks(bench, type, type, shape, random);
        test_landmarks(bench, type, SKV_I8, shape, random);
        test_gather(bench, type, shape, random);
        test_values(bench, type, type, shape, random);
        test_values(bench, type, SKV_F8_E4M3, shape, random);
        test_values(bench, type, SKV_F12_E4M7, shape, random);
        test_values(bench, type, SKV_F6_E2M3, shape, random);
      }
      for (const std::int32_t coefficients : {type, std::int32_t{SKV_I8}}) {
        test_rebuild(bench, type, coefficients, kShapes[0], 160, random);
        test_rebuild(bench, type, coefficients, kShapes[3], 17, random);
        for (const bool scaled : {false, true}) {
          test_project(bench, type, coefficients, kShapes[0], 160, 8, scaled, random);
          test_project(bench, type, coefficients, kShapes[3], 17, 71, scaled, random);
          test_project(bench, type, coefficients, kShapes[1], 16, 1, scaled, random);
        }
      }
    }
  }
  return check::verdict();
}
