// The operations that build a cache, against double precision.
#include "gpu_test.h"

namespace {

using gpu::Array;
using gpu::check_all;
using gpu::kBf16Epsilon;
using gpu::kF32Epsilon;
using gpu::rounded;

using Doubles = std::vector<double>;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

std::string label(const char* what, std::int64_t a, std::int64_t b, std::int64_t c) {
  return std::string(what) + " " + std::to_string(a) + "/" + std::to_string(b) + "/" + std::to_string(c);
}

// Keys as models make them: directions whose strength falls as a power, over a mean, times a token's own loudness.
std::vector<float> keys_of(std::mt19937_64& generator, std::int64_t tokens, std::int64_t width, double power,
                           std::int64_t directions) {
  const auto mixing = gpu::normals(generator, directions * width, 1.0F / std::sqrt(static_cast<float>(width)));
  const auto mean = gpu::normals(generator, width, 0.3F);
  std::vector<float> keys(at(tokens * width));
  std::normal_distribution<float> normal;
  for (std::int64_t token = 0; token < tokens; ++token) {
    float* const key = &keys[at(token * width)];
    std::copy(mean.begin(), mean.end(), key);
    for (std::int64_t j = 0; j < directions; ++j) {
      const float strength = normal(generator) * static_cast<float>(8 * std::pow(static_cast<double>(j + 1), -power));
      const float* const direction = &mixing[at(j * width)];
      for (std::int64_t i = 0; i < width; ++i) {
        key[i] += strength * direction[i];
      }
    }
  }
  return rounded(keys, SKV_BF16);
}

void rope(skv::Backend& backend, std::mt19937_64& generator) {
  struct Case {
    std::int32_t type, head_dim, rotary_dim, pairing, heads;
    std::int64_t count, first, gap;
    bool listed, inverse, in_place;
  };
  const Case cases[] = {
      {SKV_BF16, 128, 128, SKV_HALF_SPLIT, 32, 333, 1000, 0, false, false, false},
      {SKV_BF16, 128, 64, SKV_INTERLEAVED, 5, 77, 0, 24, true, false, false},
      {SKV_F32, 96, 96, SKV_HALF_SPLIT, 3, 41, 123456, 0, false, true, true},
      {SKV_F16, 64, 32, SKV_HALF_SPLIT, 8, 19, 7, 8, true, true, false},
      {SKV_BF16, 34, 20, SKV_HALF_SPLIT, 2, 13, 90, 2, false, false, true},
      {SKV_F32, 80, 80, SKV_INTERLEAVED, 7, 3000, 99, 0, false, false, false},
  };
  for (const Case& c : cases) {
    const gpu::Rotation rotation(c.rotary_dim, c.pairing, 10000, 1.2, 200000);
    Array coarse = Array::of(backend, rotation.coarse), fine = Array::of(backend, rotation.fine);
    const std::int64_t stride = static_cast<std::int64_t>(c.heads) * c.head_dim + c.gap;
    const auto x = rounded(gpu::normals(generator, c.count * stride), c.type);
    std::vector<std::int64_t> positions(at(c.count));
    for (std::int64_t i = 0; i < c.count; ++i) {
      positions[at(i)] = c.listed ? static_cast<std::int64_t>(generator() % 200000) : c.first + i;
    }
    Array input(backend, x, c.type), output(backend, c.count * stride * gpu::size_of(c.type));
    Array list = Array::of(backend, positions);
    skv_rope_params p = {};
    p.type = c.type;
    p.input = input;
    p.output = c.in_place ? input.get() : output.get();
    p.count = c.count;
    p.input_stride = p.output_stride = stride;
    p.heads = c.heads;
    p.head_dim = c.head_dim;
    p.first_position = c.first;
    p.positions = c.listed ? list.as<std::int64_t>() : nullptr;
    p.inverse = c.inverse;
    p.rope = rotation.on(coarse, fine);
    backend.rope(p);
    const auto all = (c.in_place ? input : output).values(c.type);
    std::vector<float> actual;
    Doubles expected, size;
    for (std::int64_t token = 0; token < c.count; ++token) {
      for (std::int32_t head = 0; head < c.heads; ++head) {
        const std::int64_t from = token * stride + head * c.head_dim;
        const Doubles y = rotation.rotate(&x[at(from)], c.head_dim, positions[at(token)], c.inverse);
        for (std::int32_t i = 0; i < c.head_dim; ++i) {
          actual.push_back(all[at(from + i)]);
          expected.push_back(y[at(i)]);
          size.push_back(std::fabs(y[at(i)]));
        }
      }
    }
    // Elements are near 1; the product of two rotations of fp32 tables is off by a few epsilons.
    check_all(label("rope", c.type, c.head_dim, c.rotary_dim), actual, expected, [&](std::size_t i) {
      return gpu::epsilon_of(c.type) * size[i] / 2 + 40 * kF32Epsilon + (c.type == SKV_F16 ? 0x1p-24 : 0);
    });
  }
}

void store_tokens(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : {SKV_F32, SKV_BF16, SKV_F16}) {
    for (const auto& [head_dim, rotary_dim, pairing] :
         {std::tuple{128, 128, SKV_HALF_SPLIT}, std::tuple{96, 48, SKV_INTERLEAVED},
          std::tuple{64, 64, SKV_INTERLEAVED}, std::tuple{38, 38, SKV_HALF_SPLIT},
          std::tuple{128, 64, SKV_HALF_SPLIT}}) {
      const std::int32_t heads = 3;
      // A ring that wraps, and a fused row of queries, keys and values.
      const std::int64_t count = 117, first = 1003, capacity = 300, width = heads * head_dim, stride = 5 * width;
      const gpu::Rotation rotation(rotary_dim, pairing, 500000, 1, 4096);
      Array coarse = Array::of(backend, rotation.coarse), fine = Array::of(backend, rotation.fine);
      const auto fused = rounded(gpu::normals(generator, count * stride), type);
      Array input(backend, fused, type);
      Array rotated(backend, width * capacity * 2), raw(backend, width * capacity * 2),
          stored(backend, width * capacity * 2);
      skv_store_tokens_params p = {};
      p.input_type = type;
      p.storage_type = SKV_BF16;
      p.key_value_heads = heads;
      p.head_dim = head_dim;
      p.count = count;
      p.first_position = first;
      p.keys = input.as<std::uint8_t>() + 3 * width * gpu::size_of(type);
      p.values = input.as<std::uint8_t>() + 4 * width * gpu::size_of(type);
      p.key_stride = p.value_stride = stride;
      p.rotated_keys = rotated;
      p.raw_keys = raw;
      p.stored_values = stored;
      p.capacity = capacity;
      p.rope = rotation.on(coarse, fine);
      backend.store_tokens(p);
      const auto all_rotated = rotated.values(SKV_BF16), all_raw = raw.values(SKV_BF16),
                 all_stored = stored.values(SKV_BF16);
      std::vector<bool> written(at(capacity));
      std::vector<float> actual;
      Doubles expected;
      bool copies = true;
      for (std::int64_t token = 0; token < count; ++token) {
        const std::int64_t row = (first + token) % capacity;
        written[at(row)] = true;
        for (std::int32_t head = 0; head < heads; ++head) {
          const float* const key = &fused[at(token * stride + 3 * width + head * head_dim)];
          const float* const value = key + width;
          const Doubles y = rotation.rotate(key, head_dim, first + token);
          for (std::int32_t i = 0; i < head_dim; ++i) {
            actual.push_back(all_rotated[at((head * capacity + row) * head_dim + i)]);
            expected.push_back(y[at(i)]);
            copies =
                copies && all_raw[at(row * width + head * head_dim + i)] == gpu::bf16_value(gpu::bf16_bits(key[i])) &&
                all_stored[at((head * capacity + row) * head_dim + i)] == gpu::bf16_value(gpu::bf16_bits(value[i]));
          }
        }
      }
      check_all(label("store_tokens", type, head_dim, rotary_dim), actual, expected,
                [&](std::size_t i) { return kBf16Epsilon / 2 * std::fabs(expected[i]) + 40 * kF32Epsilon; });
      CHECK(copies);
      bool others_kept = true;
      for (std::int64_t row = 0; row < capacity; ++row) {
        for (std::int64_t i = 0; i < head_dim && !written[at(row)]; ++i) {
          others_kept = others_kept && std::isnan(all_rotated[at(row * head_dim + i)]) &&
                        std::isnan(all_stored[at(row * head_dim + i)]) && std::isnan(all_raw[at(row * width + i)]);
        }
      }
      CHECK(others_kept);
    }
  }
}

void landmark_build(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t head_dim : {64, 96, 128, 256, 50}) {
    for (const std::int32_t chunk : {8, 16}) {
      for (const std::int32_t type : {SKV_BF16, SKV_I8}) {
        const std::int64_t heads = 3, first = 5, chunks = 41, chunk_capacity = 60;
        // A ring of no whole number of chunks: some chunk wraps.
        const std::int64_t capacity = chunk * 43 + 3;
        const auto keys = keys_of(generator, heads * capacity, head_dim, 0.7, 40);
        Array rotated(backend, keys, SKV_BF16),
            landmarks(backend, heads * chunk_capacity * head_dim * gpu::size_of(type));
        Array scales(backend, heads * chunk_capacity * 4), radius(backend, heads * chunk_capacity * 4);
        Array cosine(backend, heads * chunk_capacity * 4);
        skv_landmark_build_params p = {};
        p.storage_type = SKV_BF16;
        p.landmark_type = type;
        p.key_value_heads = static_cast<std::int32_t>(heads);
        p.head_dim = head_dim;
        p.chunk = chunk;
        p.rotated_keys = rotated;
        p.capacity = capacity;
        p.first_chunk = first;
        p.chunks = chunks;
        p.landmarks = landmarks;
        p.landmark_scales = type == SKV_I8 ? scales.as<float>() : nullptr;
        p.radius = radius.as<float>();
        p.cosine = cosine.as<float>();
        p.chunk_capacity = chunk_capacity;
        backend.landmark_build(p);
        const auto raw = landmarks.bytes();
        const auto all_scales = scales.values(SKV_F32), all_radius = radius.values(SKV_F32),
                   all_cosine = cosine.values(SKV_F32);
        std::vector<float> actual_mean, actual_radius, actual_cosine, actual_scale;
        Doubles mean_expected, radius_expected, cosine_expected, scale_expected, mean_allowed;
        bool others_kept = true;
        for (std::int64_t head = 0; head < heads; ++head) {
          for (std::int64_t c = 0; c < chunk_capacity; ++c) {
            const std::int64_t place = head * chunk_capacity + c;
            if (c < first || c >= first + chunks) {
              others_kept = others_kept && std::isnan(all_radius[at(place)]) && std::isnan(all_cosine[at(place)]) &&
                            raw[at(place * head_dim * gpu::size_of(type))] == 0xff;
              continue;
            }
            Doubles mean(at(head_dim)), stored(at(head_dim));
            double absolute = 0, largest = 0;
            const auto member = [&](std::int64_t t, std::int64_t d) {
              return static_cast<double>(keys[at((head * capacity + (c * chunk + t) % capacity) * head_dim + d)]);
            };
            for (std::int32_t d = 0; d < head_dim; ++d) {
              for (std::int32_t t = 0; t < chunk; ++t) {
                mean[at(d)] += member(t, d) / chunk;
                absolute = std::max(absolute, std::fabs(member(t, d)));
              }
              largest = std::max(largest, std::fabs(mean[at(d)]));
            }
            for (std::int32_t d = 0; d < head_dim; ++d) {
              const std::int64_t element = place * head_dim + d;
              if (type == SKV_I8) {
                const int level = static_cast<std::int8_t>(raw[at(element)]);
                stored[at(d)] = level * static_cast<double>(all_scales[at(place)]);
                mean_allowed.push_back(largest / 127 * 0.501 + chunk * kF32Epsilon * absolute);
              } else {
                std::uint16_t half;
                std::memcpy(&half, &raw[at(2 * element)], 2);
                stored[at(d)] = gpu::bf16_value(half);
                mean_allowed.push_back(kBf16Epsilon / 2 * std::fabs(mean[at(d)]) + chunk * kF32Epsilon * absolute);
              }
              actual_mean.push_back(static_cast<float>(stored[at(d)]));
              mean_expected.push_back(mean[at(d)]);
            }
            double farthest = 0, smallest = 2;
            for (std::int32_t t = 0; t < chunk; ++t) {
              double dot = 0, squares = 0, mean_squares = 0, distance = 0;
              for (std::int32_t d = 0; d < head_dim; ++d) {
                const double x = member(t, d);
                dot += x * mean[at(d)];
                squares += x * x;
                mean_squares += mean[at(d)] * mean[at(d)];
                distance += (x - stored[at(d)]) * (x - stored[at(d)]);
              }
              farthest = std::max(farthest, std::sqrt(distance));
              smallest = std::min(smallest, dot / std::sqrt(squares * mean_squares));
            }
            actual_radius.push_back(all_radius[at(place)]);
            radius_expected.push_back(farthest);
            actual_cosine.push_back(all_cosine[at(place)]);
            cosine_expected.push_back(smallest);
            actual_scale.push_back(all_scales[at(place)]);
            scale_expected.push_back(largest / 127);
          }
        }
        const double sum = head_dim * kF32Epsilon;
        check_all(label("landmark_build mean", head_dim, chunk, type), actual_mean, mean_expected,
                  [&](std::size_t i) { return mean_allowed[i]; });
        check_all(label("landmark_build radius", head_dim, chunk, type), actual_radius, radius_expected,
                  [&](std::size_t i) { return 2 * sum * radius_expected[i] + 1e-6; });
        check_all(label("landmark_build cosine", head_dim, chunk, type), actual_cosine, cosine_expected,
                  [&](std::size_t) { return 4 * sum + 1e-6; });
        if (type == SKV_I8) {
          check_all(label("landmark_build scale", head_dim, chunk, type), actual_scale, scale_expected,
                    [&](std::size_t i) { return 1e-5 * scale_expected[i]; });
        }
        CHECK(others_kept);
      }
    }
  }
}

void outlier_select(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int64_t chunks : {1, 50, 1024, 15'343, 40'000}) {
    for (const std::int32_t wanted : {1, 48, 700}) {
      for (const bool coarse : {false, true}) {
        const std::int32_t count = static_cast<std::int32_t>(std::min<std::int64_t>(wanted, chunks));
        const std::int64_t heads = 4, capacity = chunks + 13;
        std::vector<float> cosine(at(heads * capacity));
        std::uniform_real_distribution<float> uniform(-0.2F, 1.0F);
        for (float& c : cosine) {
          // Few distinct values: ties everywhere, of zeros of both signs too.
          c = coarse ? std::round(uniform(generator) * 8) / 8 : uniform(generator);
        }
        Array input = Array::of(backend, cosine), ids(backend, heads * count * 4),
              radius(backend, heads * capacity * 4);
        skv_outlier_select_params p = {};
        p.key_value_heads = static_cast<std::int32_t>(heads);
        p.cosine = input.as<float>();
        p.chunks = chunks;
        p.chunk_capacity = capacity;
        p.count = count;
        p.ids = ids.as<std::int32_t>();
        p.radius = radius.as<float>();
        backend.outlier_select(p);
        const auto actual = ids.download<std::int32_t>();
        const auto all_radius = radius.values(SKV_F32);
        bool same = true, marked = true;
        for (std::int64_t head = 0; head < heads; ++head) {
          std::vector<std::int32_t> order(at(chunks));
          for (std::int32_t i = 0; i < chunks; ++i) {
            order[at(i)] = i;
          }
          const float* const row = &cosine[at(head * capacity)];
          std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return row[a] < row[b]; });
          order.resize(at(count));
          std::sort(order.begin(), order.end());
          same = same && std::equal(order.begin(), order.end(), &actual[at(head * count)]);
          for (std::int32_t i = 0; i < capacity; ++i) {
            const bool selected = std::binary_search(order.begin(), order.end(), i);
            const float value = all_radius[at(head * capacity + i)];
            marked = marked && (selected ? value == -1.0F : std::isnan(value));
          }
        }
        CHECK(same);
        CHECK(marked);
      }
    }
  }
}

void chunk_gather(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t head_dim : {128, 96, 50}) {
    const std::int64_t heads = 3, chunk = 8, capacity = 331, target_capacity = 20, target_first = 4;
    const std::int32_t count = 9;
    const auto values = rounded(gpu::normals(generator, heads * capacity * head_dim), SKV_BF16);
    std::vector<std::int32_t> ids(at(heads * count));
    for (std::int32_t& id : ids) {
      id = static_cast<std::int32_t>(generator() % 200);
    }
    Array source(backend, values, SKV_BF16), list = Array::of(backend, ids);
    Array target(backend, heads * target_capacity * chunk * head_dim * 2);
    skv_chunk_gather_params p = {};
    p.type = SKV_BF16;
    p.key_value_heads = static_cast<std::int32_t>(heads);
    p.head_dim = head_dim;
    p.chunk = static_cast<std::int32_t>(chunk);
    p.source = source;
    p.capacity = capacity;
    p.ids = list.as<std::int32_t>();
    p.count = count;
    p.target = target;
    p.target_first = target_first;
    p.target_capacity = target_capacity;
    backend.chunk_gather(p);
    const auto all = target.values(SKV_BF16);
    bool same = true;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(all.size()); ++i) {
      const std::int64_t d = i % head_dim, t = i / head_dim % chunk, place = i / head_dim / chunk % target_capacity;
      const std::int64_t head = i / head_dim / chunk / target_capacity;
      const bool inside = place >= target_first && place < target_first + count;
      same = same &&
             (inside ? all[at(i)] == values[at((head * capacity +
                                                (ids[at(head * count + place - target_first)] * chunk + t) % capacity) *
                                                   head_dim +
                                               d)]
                     : std::isnan(all[at(i)]));
    }
    CHECK(same);
  }
}

void value_store(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : {SKV_BF16, SKV_F8_E4M3}) {
    for (const auto& [head_dim, capacity, first, chunks] :
         {std::tuple{128, 4096, 3, 500}, std::tuple{96, 331, 7, 40}, std::tuple{50, 333, 30, 41}}) {
      const std::int64_t heads = 3, chunk = 8, chunk_capacity = first + chunks + 5;
      auto values = rounded(gpu::normals(generator, heads * capacity * head_dim, 3.0F), SKV_BF16);
      for (std::int64_t i = 0; i < chunk * head_dim; ++i) {
        values[at((first * chunk % capacity) * head_dim + i) % values.size()] = 0;  // a chunk of zeros, as it comes
      }
      Array source(backend, values, SKV_BF16), scales(backend, heads * chunk_capacity * 4);
      const std::int64_t bytes = heads * chunk_capacity * chunk * head_dim * gpu::size_of(type);
      auto* const host = static_cast<std::uint8_t*>(backend.allocate_host(static_cast<std::uint64_t>(bytes)));
      std::memset(host, 0xff, at(bytes));
      skv_value_store_params p = {};
      p.storage_type = SKV_BF16;
      p.value_type = type;
      p.key_value_heads = static_cast<std::int32_t>(heads);
      p.head_dim = head_dim;
      p.chunk = static_cast<std::int32_t>(chunk);
      p.source = source;
      p.capacity = capacity;
      p.first_chunk = first;
      p.chunks = chunks;
      p.values = host;
      p.value_scales = scales.as<float>();
      p.chunk_capacity = chunk_capacity;
      backend.value_store(p);
      const auto all_scales = scales.values(SKV_F32);
      backend.synchronize();
      const auto all = gpu::decode(std::vector<std::uint8_t>(host, host + bytes), type);
      std::vector<float> actual;
      Doubles expected, allowed;
      bool others_kept = true;
      for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t c = 0; c < chunk_capacity; ++c) {
          const std::int64_t place = head * chunk_capacity + c;
          const bool inside = c >= first && c < first + chunks;
          double largest = 0;
          for (int pass = 0; pass < 2; ++pass) {
            for (std::int64_t i = 0; i < chunk * head_dim; ++i) {
              const float stored = all[at(place * chunk * head_dim + i)];
              if (!inside) {
                others_kept = others_kept && std::isnan(stored);
                continue;
              }
              const double x =
                  values[at((head * capacity + (c * chunk + i / head_dim) % capacity) * head_dim + i % head_dim)];
              if (pass == 0) {
                largest = std::max(largest, std::fabs(x));
              } else if (type == SKV_BF16) {
                actual.push_back(stored);
                expected.push_back(x);
                allowed.push_back(0);
              } else {
                // Half a step of e4m3: a sixteenth of the value, or half the smallest step.
                const double scale = largest / 448;
                actual.push_back(stored * all_scales[at(place)]);
                expected.push_back(x);
                allowed.push_back((std::fabs(x) * 0x1p-4 + scale * 0x1p-10) * (1 + 1e-5));
              }
            }
            if (inside && pass == 0 && type == SKV_F8_E4M3) {
              actual.push_back(all_scales[at(place)]);
              expected.push_back(largest / 448);
              allowed.push_back(largest / 448 * 1e-6);
            }
          }
        }
      }
      check_all(label("value_store", type, head_dim, capacity), actual, expected,
                [&](std::size_t i) { return allowed[i]; });
      CHECK(others_kept);
      backend.free_host(host);
    }
  }
}

// Random orthonormal rows over the joint width, as [K][r][D].
std::vector<float> basis_of(std::mt19937_64& generator, std::int64_t heads, std::int64_t head_dim, std::int64_t rank) {
  const std::int64_t width = heads * head_dim;
  std::vector<Doubles> rows;
  std::normal_distribution<double> normal;
  for (std::int64_t j = 0; j < rank; ++j) {
    Doubles row(at(width));
    for (double& x : row) {
      x = normal(generator);
    }
    for (int pass = 0; pass < 2; ++pass) {
      for (const Doubles& other : rows) {
        double dot = 0;
        for (std::size_t i = 0; i < row.size(); ++i) {
          dot += row[i] * other[i];
        }
        for (std::size_t i = 0; i < row.size(); ++i) {
          row[i] -= dot * other[i];
        }
      }
      double squares = 0;
      for (const double x : row) {
        squares += x * x;
      }
      for (double& x : row) {
        x /= std::sqrt(squares);
      }
    }
    rows.push_back(row);
  }
  std::vector<float> basis(at(rank * width));
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t j = 0; j < rank; ++j) {
      for (std::int64_t d = 0; d < head_dim; ++d) {
        basis[at((head * rank + j) * head_dim + d)] = static_cast<float>(rows[at(j)][at(head * head_dim + d)]);
      }
    }
  }
  return rounded(basis, SKV_BF16);
}

void rebuild_keys(skv::Backend& backend, std::mt19937_64& generator) {
  for (const auto& [head_dim, rank, pairing] :
       {std::tuple{128, 160, SKV_HALF_SPLIT}, std::tuple{64, 40, SKV_INTERLEAVED}, std::tuple{96, 64, SKV_HALF_SPLIT},
        std::tuple{256, 256, SKV_HALF_SPLIT}, std::tuple{50, 17, SKV_HALF_SPLIT}, std::tuple{16, 16, SKV_HALF_SPLIT}}) {
    const std::int64_t heads = 2, count = 139, first = 61, capacity = 150;
    const std::int32_t rotary_dim = head_dim == 64 ? 32 : head_dim;
    const gpu::Rotation rotation(rotary_dim, pairing, 10000, 1, 512);
    Array coarse = Array::of(backend, rotation.coarse), fine = Array::of(backend, rotation.fine);
    const auto a = rounded(gpu::normals(generator, (first + count) * rank), SKV_BF16);
    const auto b = rounded(gpu::normals(generator, heads * rank * head_dim, 0.2F), SKV_BF16);
    Array coefficients(backend, a, SKV_BF16), basis(backend, b, SKV_BF16),
        keys(backend, heads * capacity * head_dim * 2);
    skv_rebuild_keys_params p = {};
    p.type = SKV_BF16;
    p.coefficients = coefficients;
    p.basis = basis;
    p.key_value_heads = static_cast<std::int32_t>(heads);
    p.head_dim = head_dim;
    p.rank = rank;
    p.first_position = first;
    p.count = count;
    p.rotated_keys = keys;
    p.capacity = capacity;
    p.rope = rotation.on(coarse, fine);
    backend.rebuild_keys(p);
    const auto all = keys.values(SKV_BF16);
    std::vector<float> actual;
    Doubles expected, allowed;
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t token = first; token < first + count; ++token) {
        Doubles x(at(head_dim));
        double absolute = 0;
        for (std::int64_t d = 0; d < head_dim; ++d) {
          double terms = 0;
          for (std::int64_t j = 0; j < rank; ++j) {
            const double term = static_cast<double>(a[at(token * rank + j)]) *
                                static_cast<double>(b[at((head * rank + j) * head_dim + d)]);
            x[at(d)] += term;
            terms += std::fabs(term);
          }
          absolute = std::max(absolute, terms);
        }
        const std::vector<float> head_keys(x.begin(), x.end());
        const Doubles y = rotation.rotate(head_keys.data(), head_dim, token);
        for (std::int64_t d = 0; d < head_dim; ++d) {
          actual.push_back(all[at((head * capacity + token % capacity) * head_dim + d)]);
          expected.push_back(y[at(d)]);
          allowed.push_back(kBf16Epsilon / 2 * std::fabs(y[at(d)]) + 8 * std::sqrt(rank) * kF32Epsilon * absolute);
        }
      }
    }
    check_all(label("rebuild_keys", head_dim, rank, pairing), actual, expected,
              [&](std::size_t i) { return allowed[i]; });
  }
}

void low_rank_project(skv::Backend& backend, std::mt19937_64& generator) {
  for (const auto& [heads, head_dim, rank, count] :
       {std::tuple{8, 128, 160, 100}, std::tuple{4, 64, 40, 8}, std::tuple{2, 256, 256, 65}, std::tuple{3, 50, 17, 70},
        std::tuple{1, 16, 16, 5}, std::tuple{4, 96, 64, 16}}) {
    const std::int64_t width = heads * head_dim, stride = width + 16;
    auto x = rounded(gpu::normals(generator, count * stride), SKV_BF16);
    std::fill_n(x.begin() + 2 * stride, width, 0.0F);  // a key of zeros
    const auto b = basis_of(generator, heads, head_dim, rank);
    Array keys(backend, x, SKV_BF16), basis(backend, b, SKV_BF16), coefficients(backend, count * rank * 2);
    Array residual(backend, count * 4);
    skv_low_rank_project_params p = {};
    p.type = SKV_BF16;
    p.keys = keys;
    p.count = count;
    p.key_stride = stride;
    p.key_value_heads = heads;
    p.head_dim = head_dim;
    p.rank = rank;
    p.basis = basis;
    p.coefficients = coefficients;
    p.residual = residual.as<float>();
    backend.low_rank_project(p);
    const auto actual = coefficients.values(SKV_BF16);
    Doubles expected, allowed, missed;
    for (std::int64_t token = 0; token < count; ++token) {
      Doubles rest(at(width));
      double whole = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        rest[at(i)] = x[at(token * stride + i)];
        whole += rest[at(i)] * rest[at(i)];
      }
      for (std::int64_t j = 0; j < rank; ++j) {
        double sum = 0, absolute = 0;
        for (std::int64_t i = 0; i < width; ++i) {
          const double term = static_cast<double>(x[at(token * stride + i)]) *
                              static_cast<double>(b[at((i / head_dim * rank + j) * head_dim + i % head_dim)]);
          sum += term;
          absolute += std::fabs(term);
        }
        expected.push_back(sum);
        allowed.push_back(kBf16Epsilon / 2 * std::fabs(sum) +
                          4 * std::sqrt(static_cast<double>(width)) * kF32Epsilon * absolute);
        // What the stored coefficient gives back.
        for (std::int64_t i = 0; i < width; ++i) {
          rest[at(i)] -= static_cast<double>(actual[at(token * rank + j)]) *
                         static_cast<double>(b[at((i / head_dim * rank + j) * head_dim + i % head_dim)]);
        }
      }
      double left = 0;
      for (const double r : rest) {
        left += r * r;
      }
      missed.push_back(whole > 0 ? left / whole : 0);
    }
    check_all(label("low_rank_project", width, rank, count), actual, expected,
              [&](std::size_t i) { return allowed[i]; });
    check_all(label("low_rank_project residual", width, rank, count), residual.values(SKV_F32), missed,
              [&](std::size_t i) {
                return 16 * std::sqrt(static_cast<double>(width)) * kF32Epsilon * (missed[i] + std::sqrt(missed[i]));
              });
  }
}

// Eigenvalues of a symmetric matrix, descending, by cyclic two-sided Jacobi.
Doubles eigenvalues(Doubles a, std::int64_t n) {
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0, diagonal = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        (i == j ? diagonal : off) += a[at(i * n + j)] * a[at(i * n + j)];
      }
    }
    if (off <= 1e-22 * diagonal) {
      break;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i + 1; j < n; ++j) {
        const double x = a[at(i * n + j)];
        if (x == 0) {
          continue;
        }
        const double zeta = (a[at(j * n + j)] - a[at(i * n + i)]) / (2 * x);
        const double t = std::copysign(1.0, zeta) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta));
        const double c = 1 / std::sqrt(1 + t * t), s = c * t;
        // Rows only, then the symmetric columns from them: the matrix stays symmetric in memory.
        for (std::int64_t k = 0; k < n; ++k) {
          const double u = a[at(i * n + k)], v = a[at(j * n + k)];
          a[at(i * n + k)] = c * u - s * v;
          a[at(j * n + k)] = s * u + c * v;
        }
        for (std::int64_t k = 0; k < n; ++k) {
          const double u = a[at(k * n + i)], v = a[at(k * n + j)];
          a[at(k * n + i)] = c * u - s * v;
          a[at(k * n + j)] = s * u + c * v;
        }
      }
    }
  }
  Doubles values;
  for (std::int64_t i = 0; i < n; ++i) {
    values.push_back(a[at(i * n + i)]);
  }
  std::sort(values.rbegin(), values.rend());
  return values;
}

void low_rank_factor(skv::Backend& backend, std::mt19937_64& generator) {
  struct Case {
    std::int32_t heads, head_dim, rank, stored_rank;
    std::int64_t tokens, gap;
    double power;             // of the spectrum
    std::int64_t directions;  // 0: keys of zeros
  };
  const Case cases[] = {
      {3, 96, 64, 0, 3001, 0, 0.7, 288}, {4, 64, 40, 48, 2500, 64, 1.0, 256}, {2, 128, 160, 0, 1999, 0, 0.5, 256},
      {2, 64, 64, 0, 40, 0, 0.7, 128},   {3, 64, 64, 0, 1500, 0, 0.3, 20},    {2, 32, 64, 0, 900, 0, 0.7, 64},
      {2, 64, 32, 0, 1000, 0, 0.7, 0},   {1, 50, 17, 24, 777, 6, 1.5, 50},    {5, 64, 256, 0, 2100, 0, 0.6, 320},
  };
  for (const Case& c : cases) {
    const std::int64_t width = static_cast<std::int64_t>(c.heads) * c.head_dim, stride = width + c.gap;
    const std::int64_t r = c.stored_rank ? c.stored_rank : c.rank;
    const auto x = keys_of(generator, c.tokens, width, c.power, c.directions);
    std::vector<float> strided(at(c.tokens * stride), 77.0F);
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      for (std::int64_t i = 0; i < width; ++i) {
        strided[at(token * stride + i)] = c.directions ? x[at(token * width + i)] : 0.0F;
      }
    }
    Array keys(backend, strided, SKV_BF16), coefficients(backend, c.tokens * r * 2), basis(backend, width * r * 2);
    Array values(backend, c.rank * 4), energy(backend, 8);
    skv_low_rank_factor_params p = {};
    p.type = SKV_BF16;
    p.keys = keys;
    p.tokens = c.tokens;
    p.key_stride = stride;
    p.key_value_heads = c.heads;
    p.head_dim = c.head_dim;
    p.rank = c.rank;
    p.stored_rank = c.stored_rank;
    p.coefficients = coefficients;
    p.basis = basis;
    p.singular_values = values.as<float>();
    p.energy = energy.as<float>();
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &p));
    backend.low_rank_factor(p);
    const auto a = coefficients.values(SKV_BF16), b = basis.values(SKV_BF16), singular = values.values(SKV_F32);
    const auto captured = energy.values(SKV_F32);
    const std::string what = label("low_rank_factor", c.tokens, width, c.rank);
    bool finite = true;
    for (const auto* list : {&a, &b, &singular, &captured}) {
      for (const float value : *list) {
        finite = finite && std::isfinite(value);
      }
    }
    CHECK(finite);

    Doubles gram(at(width * width));
    double whole = 0;
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      for (std::int64_t i = 0; i < width; ++i) {
        const double u = strided[at(token * stride + i)];
        whole += u * u;
        for (std::int64_t j = 0; j < width; ++j) {
          gram[at(i * width + j)] += u * static_cast<double>(strided[at(token * stride + j)]);
        }
      }
    }
    const Doubles exact = whole > 0 ? eigenvalues(gram, width) : Doubles(at(width));
    double optimum = 0;
    for (std::int64_t i = c.rank; i < width; ++i) {
      optimum += std::max(exact[at(i)], 0.0);
    }
    // Keys against what the stored factors give back.
    double missed = 0;
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      Doubles rest(at(width));
      for (std::int64_t i = 0; i < width; ++i) {
        rest[at(i)] = strided[at(token * stride + i)];
      }
      for (std::int64_t j = 0; j < r; ++j) {
        const double coefficient = a[at(token * r + j)];
        for (std::int64_t i = 0; i < width; ++i) {
          rest[at(i)] -=
              coefficient * static_cast<double>(b[at((i / c.head_dim * r + j) * c.head_dim + i % c.head_dim)]);
        }
      }
      for (const double u : rest) {
        missed += u * u;
      }
    }
    // 1 % above the optimum, and the rounding of both factors to bf16: errors of up to half an epsilon, evenly
    // spread, have a mean square of a third of that for each factor.
    const double rounding = 2.0 / 3 * kBf16Epsilon * kBf16Epsilon / 4 * whole;
    std::printf("%s: error %.6g, optimum %.6g, rounding %.3g, keys %.6g\n", what.c_str(), std::sqrt(missed),
                std::sqrt(optimum), std::sqrt(rounding), std::sqrt(whole));
    CHECK(missed <= 1.01 * 1.01 * optimum + 1.5 * rounding);

    const std::int64_t usable = std::min<std::int64_t>({c.rank, c.tokens, width});
    bool orthonormal = true, zero_behind = true, descending = true;
    for (std::int64_t j = 0; j < r; ++j) {
      for (std::int64_t k = 0; k <= j; ++k) {
        double dot = 0;
        for (std::int64_t i = 0; i < width; ++i) {
          dot += static_cast<double>(b[at((i / c.head_dim * r + j) * c.head_dim + i % c.head_dim)]) *
                 static_cast<double>(b[at((i / c.head_dim * r + k) * c.head_dim + i % c.head_dim)]);
        }
        if (j >= usable) {
          zero_behind = zero_behind && dot == 0;
        } else if (k == j && singular[at(j)] <= 1e-3F * singular[0]) {
          orthonormal = orthonormal && (std::fabs(dot - 1) <= kBf16Epsilon / 2 || dot == 0);
        } else {
          orthonormal = orthonormal && std::fabs(dot - (j == k ? 1 : 0)) <= kBf16Epsilon / 2;
        }
      }
      for (std::int64_t token = 0; j >= usable && token < c.tokens; ++token) {
        zero_behind = zero_behind && a[at(token * r + j)] == 0;
      }
    }
    double total = 0;
    for (std::int64_t j = 0; j < c.rank; ++j) {
      const double mine = singular[at(j)], best = std::sqrt(std::max(exact[at(j)], 0.0));
      descending = descending && (j == 0 || mine <= static_cast<double>(singular[at(j - 1)]));
      // No subspace holds more; the strong half is converged. Below 1e-3 of the largest, fp32 sums blur the value.
      descending = descending && mine <= best * (1 + 1e-4) + 1e-3 * std::sqrt(exact[0]);
      if (j < c.rank / 2 && best > 1e-2 * std::sqrt(exact[0])) {
        descending = descending && mine >= best * (1 - 1e-3);
      }
      total += mine * mine;
    }
    CHECK(orthonormal);
    CHECK(zero_behind);
    CHECK(descending);
    CHECK_NEAR(captured[0], whole, whole * 1e-4);
    CHECK_NEAR(captured[1], whole > 0 ? total / whole : 1.0, 1e-4);
  }
}

}  // namespace

int main() {
  std::string reason;
  auto backend = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  auto generator = check::fresh_generator();
  rope(*backend, generator);
  store_tokens(*backend, generator);
  landmark_build(*backend, generator);
  outlier_select(*backend, generator);
  chunk_gather(*backend, generator);
  value_store(*backend, generator);
  rebuild_keys(*backend, generator);
  low_rank_project(*backend, generator);
  const std::string blas = backend->describe_blas();
  std::printf("%s\n", blas.c_str());
  if (blas.rfind("cuBLAS was", 0) == 0) {
    skv_low_rank_factor_params p = {};
    p.type = SKV_BF16;
    p.tokens = 1000;
    p.key_value_heads = 2;
    p.head_dim = 64;
    p.rank = 16;
    backend->reserve_workspace(backend->workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &p));
    CHECK(gpu::throws(SKV_NOT_AVAILABLE, [&] { backend->low_rank_factor(p); }));
  } else {
    low_rank_factor(*backend, generator);
  }
  return check::verdict();
}
