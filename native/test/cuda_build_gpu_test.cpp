// The operations that build a cache, but for the factorization, against double precision.
#include "build_fixture.h"
#include "packed_values.h"
#include "value_types.h"

namespace {

using gpu::Array;
using gpu::at;
using gpu::check_all;
using gpu::Doubles;
using gpu::kBf16Epsilon;
using gpu::keys_of;
using gpu::kF32Epsilon;
using gpu::label;
using gpu::rounded;

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

// Heads that lie apart, as in a ring [K][capacity][D], are rotated as heads side by side are, to the bit.
void rope_of_heads_apart(skv::Backend& backend, std::mt19937_64& generator) {
  constexpr std::int64_t kHeads = 8, kTokens = 64, kCapacity = 96, kFirst = 5000;
  for (const std::int32_t head_dim : {128, 34}) {
    const gpu::Rotation rotation(head_dim, SKV_HALF_SPLIT, 10000, 1.2, 200000);
    Array coarse = Array::of(backend, rotation.coarse), fine = Array::of(backend, rotation.fine);
    const auto ring = rounded(gpu::normals(generator, kHeads * kCapacity * head_dim), SKV_BF16);
    std::vector<float> rows(at(kTokens * kHeads * head_dim));
    for (std::int64_t token = 0; token < kTokens; ++token) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        std::copy_n(&ring[at((head * kCapacity + token) * head_dim)], head_dim,
                    &rows[at((token * kHeads + head) * head_dim)]);
      }
    }
    Array apart(backend, ring, SKV_BF16), together(backend, rows, SKV_BF16);
    Array expected(backend, kTokens * kHeads * head_dim * 2), actual(backend, kTokens * kHeads * head_dim * 2);
    skv_rope_params p = {};
    p.type = SKV_BF16;
    p.input = together;
    p.output = expected;
    p.count = kTokens;
    p.heads = static_cast<std::int32_t>(kHeads);
    p.head_dim = head_dim;
    p.first_position = kFirst;
    p.inverse = 1;
    p.rope = rotation.on(coarse, fine);
    backend.rope(p);
    p.input = apart;
    p.output = actual;
    p.input_stride = head_dim;
    p.input_head_stride = kCapacity * head_dim;
    backend.rope(p);
    CHECK(actual.bytes() == expected.bytes());
    CHECK(actual.bytes() != together.bytes());
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

double scale_of(std::int32_t type, double largest) {
  return type == SKV_F12_E4M7  ? std::ldexp(1.0, largest > 0 ? std::ilogb(largest) - 8 : -120)
         : type == SKV_F6_E2M3 ? largest / (7.5 / 64)
                               : largest / 448;
}

// By how much a BF16 may change: of e4m3 and e2m3 half a step, a sixteenth of the value or half the smallest step; of
// e4m7 nothing down to 2^-14 of the largest's power of two, below that half a step there.
double store_error(std::int32_t type, double x, double scale) {
  switch (type) {
    case SKV_F8_E4M3:
    case SKV_F6_E2M3:
      return (std::fabs(x) * 0x1p-4 + scale * 0x1p-10) * (1 + 1e-5);
    case SKV_F12_E4M7:
      return std::fabs(x) >= std::ldexp(scale, 8 - 14) ? 0 : std::ldexp(scale, 8 - 22);
    default:
      return 0;
  }
}

// Of a chunk of a head, before its scale.
std::vector<float> stored_numbers(std::int32_t type, const std::uint8_t* chunk, std::int64_t elements) {
  if (!skv::is_packed(type)) {
    return gpu::decode(std::vector<std::uint8_t>(chunk, chunk + skv::value_bytes(type, elements)), type);
  }
  std::vector<float> numbers;
  for (std::int64_t i = 0; i < elements; ++i) {
    numbers.push_back(static_cast<float>(check::packed_number(type, chunk, elements, i)));
  }
  return numbers;
}

void value_store(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : {SKV_BF16, SKV_F8_E4M3, SKV_F12_E4M7, SKV_F6_E2M3}) {
    for (const auto& [head_dim, capacity, first, chunks] :
         {std::tuple{128, 4096, 3, 500}, std::tuple{96, 331, 7, 40}, std::tuple{50, 333, 30, 41}}) {
      const std::int64_t heads = 3, chunk = 8, chunk_capacity = first + chunks + 5;
      auto values = rounded(gpu::normals(generator, heads * capacity * head_dim, 3.0F), SKV_BF16);
      for (std::size_t i = 0; i < values.size(); i += 3) {
        // Far below the largest, too.
        values[i] = gpu::bf16_value(gpu::bf16_bits(std::ldexp(values[i], -static_cast<int>(generator() % 24))));
      }
      for (std::int64_t i = 0; i < chunk * head_dim; ++i) {
        values[at((first * chunk % capacity) * head_dim + i) % values.size()] = 0;  // a chunk of zeros, as it comes
      }
      Array source(backend, values, SKV_BF16), scales(backend, heads * chunk_capacity * 4);
      const std::int64_t elements = chunk * head_dim, chunk_bytes = skv::value_bytes(type, elements);
      const std::int64_t bytes = heads * chunk_capacity * chunk_bytes;
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
      std::vector<float> actual;
      Doubles expected, allowed;
      bool others_kept = true;
      for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t c = 0; c < chunk_capacity; ++c) {
          const std::int64_t place = head * chunk_capacity + c;
          const bool inside = c >= first && c < first + chunks;
          double largest = 0;
          if (!inside) {
            others_kept = others_kept && std::all_of(host + place * chunk_bytes, host + (place + 1) * chunk_bytes,
                                                     [](std::uint8_t byte) { return byte == 0xff; });
            continue;
          }
          const std::vector<float> stored = stored_numbers(type, host + place * chunk_bytes, elements);
          const float stored_scale = skv::is_scaled(type) ? all_scales[at(place)] : 1.0F;
          const auto x = [&](std::int64_t i) -> double {
            return values[at((head * capacity + (c * chunk + i / head_dim) % capacity) * head_dim + i % head_dim)];
          };
          for (std::int64_t i = 0; i < elements; ++i) {
            largest = std::max(largest, std::fabs(x(i)));
          }
          const double scale = scale_of(type, largest);
          if (skv::is_scaled(type)) {
            actual.push_back(stored_scale);
            expected.push_back(scale);
            allowed.push_back(scale * 1e-6);
          }
          for (std::int64_t i = 0; i < elements; ++i) {
            actual.push_back(stored[at(i)] * stored_scale);
            expected.push_back(x(i));
            allowed.push_back(store_error(type, x(i), scale));
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

}  // namespace

int main() {
  std::string reason;
  auto backend = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  auto generator = check::fresh_generator();
  rope(*backend, generator);
  rope_of_heads_apart(*backend, generator);
  store_tokens(*backend, generator);
  landmark_build(*backend, generator);
  outlier_select(*backend, generator);
  chunk_gather(*backend, generator);
  value_store(*backend, generator);
  return check::verdict();
}
