// Moments of the indexed tokens of a layer, on the CPU, against sums in double precision, on every instruction set of
// this processor.
#include <cstdio>

#include "check.h"
#include "decode_batch.h"

namespace {

using namespace decode;

// Rings of keys and values of a layer, and what of them is in the index.
struct Rings {
  Rings(int type, int h, int d, int c, std::int64_t first, std::int64_t number)
      : heads(h),
        dim(d),
        chunk(c),
        capacity(number * c + 5),
        first_chunk(first),
        chunks(number),
        chunk_capacity(first + number + 2),
        keys(type, h * capacity * d),
        values(type, h * capacity * d),
        radius(SKV_F32, h * chunk_capacity) {
    std::normal_distribution<double> normal;
    // A few strong directions over a mean, which values follow in part.
    constexpr int kDirections = 4;
    for (std::int64_t head = 0; head < heads; ++head) {
      Array mean(SKV_F32, dim), directions(SKV_F32, kDirections * dim), followed(SKV_F32, kDirections * dim);
      mean.fill(generator);
      directions.fill(generator, 0.7);
      followed.fill(generator, 0.4);
      for (std::int64_t row = head * capacity; row < (head + 1) * capacity; ++row) {
        double strength[kDirections];
        for (double& s : strength) {
          s = normal(generator);
        }
        for (std::int64_t i = 0; i < dim; ++i) {
          double key = mean[i] + 0.3 * normal(generator), value = 0.5 * normal(generator);
          for (int j = 0; j < kDirections; ++j) {
            key += strength[j] * directions[j * dim + i];
            value += strength[j] * followed[j * dim + i];
          }
          keys.set(row * dim + i, key);
          values.set(row * dim + i, value);
        }
      }
    }
    for (std::int64_t i = 0; i < radius.count(); ++i) {
      radius.set(i, generator() % 7 == 0 ? -1 : 0.5);
    }
  }

  skv_moment_update_params params(Array& moments) {
    skv_moment_update_params p{};
    p.struct_size = sizeof(p);
    p.storage_type = keys.type();
    p.key_value_heads = static_cast<std::int32_t>(heads);
    p.head_dim = static_cast<std::int32_t>(dim);
    p.chunk = static_cast<std::int32_t>(chunk);
    p.rotated_keys = keys.data();
    p.values = values.data();
    p.capacity = capacity;
    p.first_chunk = first_chunk;
    p.chunks = chunks;
    p.radius = radius.as<float>();
    p.chunk_capacity = chunk_capacity;
    p.moments = moments.as<float>();
    return p;
  }

  std::int64_t heads, dim, chunk, capacity, first_chunk, chunks, chunk_capacity;
  Array keys, values, radius;
};

// Sums of one head, and of the magnitudes of their terms.
struct Moments {
  std::vector<double> sum, size;
};

Moments moments_of(const Rings& r, std::int64_t head, bool all) {
  const skv::MomentLayout layout(r.dim);
  Moments m{std::vector<double>(static_cast<std::size_t>(layout.floats)),
            std::vector<double>(static_cast<std::size_t>(layout.floats))};
  const auto add = [&](std::int64_t at, double x) {
    m.sum[static_cast<std::size_t>(at)] += x;
    m.size[static_cast<std::size_t>(at)] += std::fabs(x);
  };
  for (std::int64_t c = r.first_chunk; c < r.first_chunk + r.chunks; ++c) {
    if (!all && r.radius[head * r.chunk_capacity + c] < 0) {
      continue;
    }
    for (std::int64_t t = c * r.chunk; t < (c + 1) * r.chunk; ++t) {
      const std::int64_t at = (head * r.capacity + t % r.capacity) * r.dim;
      const std::vector<double> key = row(r.keys, at, static_cast<int>(r.dim)),
                                value = row(r.values, at, static_cast<int>(r.dim));
      for (std::int64_t i = 0; i < r.dim; ++i) {
        for (std::int64_t j = 0; j < r.dim; ++j) {
          add(i * r.dim + j, value[static_cast<std::size_t>(i)] * key[static_cast<std::size_t>(j)]);
        }
        add(layout.keys + i, key[static_cast<std::size_t>(i)]);
        add(layout.values + i, value[static_cast<std::size_t>(i)]);
      }
      add(layout.count, 1);
    }
  }
  return m;
}

// before: what the moments held.
void check_moments(const Rings& r, const Array& before, const Array& moments, bool all, double factor,
                   const char* what) {
  const skv::MomentLayout layout(r.dim);
  double worst = 0;
  bool good = true;
  for (std::int64_t head = 0; head < r.heads; ++head) {
    const Moments m = moments_of(r, head, all);
    for (std::int64_t i = 0; i <= layout.count; ++i) {
      const std::int64_t at = head * layout.floats + i;
      const double want = before[at] + factor * m.sum[static_cast<std::size_t>(i)];
      // Blocks of 128 tokens, blocks of a piece and pieces one after the other.
      const double roundings = 128 + static_cast<double>(r.chunks * r.chunk) / 128 / 16 + 16 + 4;
      const double allowed =
          roundings * kUnit * m.size[static_cast<std::size_t>(i)] + 2 * kUnit * std::fabs(want) + 1e-30;
      good = check::near(moments[at], want, i == layout.count ? 0 : allowed) && good;
      worst = std::max(worst, std::fabs(moments[at] - want) / allowed);
    }
  }
  CHECK(moments.guard_intact());
  if (!CHECK(good)) {
    std::fprintf(stderr, "  moments, set %d, type %d, D %d, %s: %.2f of what is allowed\n", instruction_set,
                 r.keys.type(), static_cast<int>(r.dim), what, worst);
  }
}

void test_moments(int type, int heads, int dim, int chunk, std::int64_t chunks) {
  Rings r(type, heads, dim, chunk, 3, chunks);
  const skv::MomentLayout layout(dim);
  Array moments(SKV_F32, heads * layout.floats), zero(SKV_F32, moments.count());
  zero.fill(generator, 0);
  auto p = r.params(moments);
  p.replace = 1;
  RUN(moment_update, p);
  check_moments(r, zero, moments, false, 1, "replaced");
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t i = layout.count + 1; i < layout.floats; ++i) {
      CHECK(moments[head * layout.floats + i] == 0);
    }
  }
  const Array first = moments;
  for (const int threads : {1, 3, 7}) {
    moments.fill(generator);
    RUN(moment_update, p, threads);
    CHECK(moments == first);
  }
  p.replace = 0;
  p.radius = nullptr;
  RUN(moment_update, p);
  check_moments(r, first, moments, true, 1, "added to");
  p.subtract = 1;
  p.radius = r.radius.as<float>();
  const Array before = moments;
  RUN(moment_update, p);
  check_moments(r, before, moments, false, -1, "taken from");
  p.replace = 1;
  RUN(moment_update, p);
  check_moments(r, zero, moments, false, -1, "taken from nothing");
  p.chunks = 0;
  p.rotated_keys = p.values = nullptr;
  RUN(moment_update, p);
  CHECK(std::all_of(moments.as<float>(), moments.as<float>() + moments.count(), [](float x) { return x == 0; }));
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  for (instruction_set = 1; instruction_set <= static_cast<int>(skv::cpu::best_instruction_set()); ++instruction_set) {
    test_moments(SKV_F32, 2, 64, 8, 20);
    test_moments(SKV_BF16, 2, 128, 8, 8);     // a fold
    test_moments(SKV_BF16, 1, 128, 16, 299);  // more pieces than there may be
    test_moments(SKV_F16, 3, 96, 8, 33);
    test_moments(SKV_BF16, 2, 70, 8, 41);
    test_moments(SKV_F32, 1, 2, 8, 700);
    test_moments(SKV_BF16, 1, 256, 16, 17);
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
