// Moments of the tokens in the index, against double precision.
#include "build_fixture.h"
#include "moments.h"

namespace {

using gpu::Array;
using gpu::at;
using gpu::check_all;
using gpu::Doubles;
using gpu::kF32Epsilon;

struct Case {
  std::int32_t head_dim, heads, chunk;
  std::int64_t chunks, first_chunk;
  std::int64_t shift;  // of the moments, in floats: off the alignment that the fast kernels want
};

std::string label(const Case& c, const char* what) {
  return "moment_update " + gpu::label("", c.head_dim, c.heads, c.chunks * c.chunk) + " " + what;
}

// Rings of keys and values, and which chunks of a head count.
struct Rings {
  Rings(const Case& c, std::mt19937_64& generator)
      : shape(c), layout(c.head_dim), capacity(c.chunks * c.chunk + 5), chunk_capacity(c.first_chunk + c.chunks + 2) {
    const std::int64_t rows = c.heads * capacity;
    keys = gpu::keys_of(generator, rows, c.head_dim, 0.7, 40);
    values = gpu::normals(generator, rows * c.head_dim, 0.5F);
    // Values follow the keys in part.
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] += 0.4F * keys[i] + 0.2F;
    }
    values = gpu::rounded(values, SKV_BF16);
    for (std::int64_t i = 0; i < c.heads * chunk_capacity; ++i) {
      radius.push_back(generator() % 7 == 0 ? -1.0F : 0.5F);
    }
    // Rows that hold no token of the chunks must not be read into any sum.
    std::vector<bool> used(at(capacity));
    for (std::int64_t t = 0; t < c.chunks * c.chunk; ++t) {
      used[at(row(t))] = true;
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      if (!used[at(i % capacity)]) {
        spoil(i);
      }
    }
  }

  // Of a token, counted from the first of the chunks.
  std::int64_t row(std::int64_t token) const { return (shape.first_chunk * shape.chunk + token) % capacity; }
  bool counts(std::int64_t head, std::int64_t token) const {
    return !(radius[at(head * chunk_capacity + shape.first_chunk + token / shape.chunk)] < 0);
  }
  void spoil(std::int64_t ring_row) {
    std::fill_n(&keys[at(ring_row * shape.head_dim)], shape.head_dim, NAN);
    std::fill_n(&values[at(ring_row * shape.head_dim)], shape.head_dim, NAN);
  }

  Case shape;
  skv::MomentLayout layout;
  std::int64_t capacity, chunk_capacity;
  std::vector<float> keys, values, radius;
};

// [K][floats]: sums, and those of the magnitudes of their terms.
struct Sums {
  Doubles sum, size;
};

Sums sums_of(const Rings& r, bool all) {
  const std::int64_t dim = r.shape.head_dim, floats = r.layout.floats;
  Sums s{Doubles(at(r.shape.heads * floats)), Doubles(at(r.shape.heads * floats))};
  for (std::int64_t head = 0; head < r.shape.heads; ++head) {
    const auto add = [&](std::int64_t i, double x) {
      s.sum[at(head * floats + i)] += x;
      s.size[at(head * floats + i)] += std::fabs(x);
    };
    for (std::int64_t token = 0; token < r.shape.chunks * r.shape.chunk; ++token) {
      if (!all && !r.counts(head, token)) {
        continue;
      }
      const float* const key = &r.keys[at((head * r.capacity + r.row(token)) * dim)];
      const float* const value = &r.values[at((head * r.capacity + r.row(token)) * dim)];
      for (std::int64_t i = 0; i < dim; ++i) {
        const double v = value[i];
        for (std::int64_t j = 0; j < dim; ++j) {
          add(i * dim + j, v * key[j]);
        }
        add(r.layout.keys + i, key[i]);
        add(r.layout.values + i, v);
      }
      add(r.layout.count, 1);
    }
  }
  return s;
}

// The moments on the device, with poison before and behind them.
class Moments {
 public:
  static constexpr std::int64_t kGuard = 64;

  Moments(skv::Backend& backend, const Rings& r)
      : backend_(backend),
        floats_(r.shape.heads * r.layout.floats),
        first_(kGuard + r.shape.shift),
        array_(backend, (first_ + floats_ + kGuard) * 4) {}

  float* get() const { return array_.as<float>() + first_; }
  void poison() { backend_.fill(get(), 0xff, static_cast<std::uint64_t>(floats_ * 4)); }
  std::vector<float> values() const {
    const auto all = array_.values(SKV_F32);
    const auto nan = [](float x) { return std::isnan(x); };
    CHECK(std::all_of(all.begin(), all.begin() + first_, nan));
    CHECK(std::all_of(all.begin() + first_ + floats_, all.end(), nan));
    return {all.begin() + first_, all.begin() + first_ + floats_};
  }

 private:
  skv::Backend& backend_;
  std::int64_t floats_, first_;
  Array array_;
};

// before: what the moments held.
void check_moments(const Rings& r, int multiprocessors, const std::vector<float>& actual,
                   const std::vector<float>& before, const Sums& s, double factor, const char* what) {
  const std::int64_t floats = r.layout.floats, tokens = r.shape.chunks * r.shape.chunk;
  Doubles expected(s.sum.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expected[i] = static_cast<double>(before[i]) + factor * s.sum[i];
  }
  // A head is cut into runs of at least 256 tokens, longer ones where there are more than about two blocks an SM. A
  // tensor core adds 8 or 16 products at once and may cut the sum off instead of rounding it: an epsilon of it.
  const double run = std::max(256.0, static_cast<double>(tokens * r.shape.heads) / multiprocessors);
  const double roundings = run / 8 + static_cast<double>(tokens) / 256 + 4;
  check_all(label(r.shape, what), actual, expected, [&](std::size_t i) {
    const std::int64_t part = static_cast<std::int64_t>(i) % floats;
    return part >= r.layout.count ? 0.0 : roundings * kF32Epsilon * s.size[i] + kF32Epsilon * std::fabs(expected[i]);
  });
}

void moment_update(skv::Backend& backend, std::mt19937_64& generator, int multiprocessors, const Case& c) {
  Rings r(c, generator);
  const Sums all = sums_of(r, true), indexed = sums_of(r, false);
  Array keys(backend, r.keys, SKV_BF16), values(backend, r.values, SKV_BF16);
  // The same, with nothing to read where a chunk does not count.
  for (std::int64_t head = 0; head < c.heads; ++head) {
    for (std::int64_t token = 0; token < c.chunks * c.chunk; ++token) {
      if (!r.counts(head, token)) {
        r.spoil(head * r.capacity + r.row(token));
      }
    }
  }
  Array indexed_keys(backend, r.keys, SKV_BF16), indexed_values(backend, r.values, SKV_BF16);
  Array radius = Array::of(backend, r.radius);
  Moments moments(backend, r);
  skv_moment_update_params p = {};
  p.storage_type = SKV_BF16;
  p.key_value_heads = c.heads;
  p.head_dim = c.head_dim;
  p.chunk = c.chunk;
  p.rotated_keys = indexed_keys;
  p.values = indexed_values;
  p.capacity = r.capacity;
  p.first_chunk = c.first_chunk;
  p.chunks = c.chunks;
  p.radius = radius.as<float>();
  p.chunk_capacity = r.chunk_capacity;
  p.moments = moments.get();
  const auto run = [&] {
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_MOMENT_UPDATE, &p));
    backend.moment_update(p);
    return moments.values();
  };
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  };
  const std::vector<float> zero(indexed.sum.size());

  p.replace = 1;
  const auto first = run();
  check_moments(r, multiprocessors, first, zero, indexed, 1, "replaced");
  for (int repeat = 0; repeat < 3; ++repeat) {
    moments.poison();
    CHECK(same(run(), first));
  }

  p.replace = 0;
  p.radius = nullptr;
  p.rotated_keys = keys;
  p.values = values;
  const auto second = run();
  check_moments(r, multiprocessors, second, first, all, 1, "added to");

  p.subtract = 1;
  p.radius = radius.as<float>();
  p.rotated_keys = indexed_keys;
  p.values = indexed_values;
  const auto third = run();
  check_moments(r, multiprocessors, third, second, indexed, -1, "taken from");

  p.replace = 1;
  check_moments(r, multiprocessors, run(), zero, indexed, -1, "taken from nothing");

  // No chunks: kept, or cleared though never written.
  p.chunks = 0;
  p.rotated_keys = p.values = nullptr;
  p.replace = 0;
  const auto kept = moments.values();
  CHECK(same(run(), kept));
  p.replace = 1;
  moments.poison();
  CHECK(same(run(), zero));
}

void refusals(skv::Backend& backend) {
  skv_moment_update_params p = {};
  p.key_value_heads = 1;
  p.head_dim = 64;
  p.chunk = 8;
  for (const std::int32_t type : {SKV_F32, SKV_F16}) {
    p.storage_type = type;
    CHECK(gpu::throws(SKV_UNSUPPORTED, [&] { backend.moment_update(p); }));
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
  skv_device_info info = {};
  backend->describe(info);
  for (const Case& c : check::cases<Case>({
           {128, 8, 8, 8, 3, 0},       // a fold
           {128, 2, 8, 517, 1000, 0},  // several runs, the last one short
           {128, 1, 16, 301, 7, 0},
           {128, 3, 8, 1, 0, 0},
           {96, 3, 8, 131, 11, 0},
           {96, 2, 16, 40, 0, 0},
           {64, 32, 8, 375, 2, 0},  // more than two blocks an SM, were runs the shortest
           {64, 4, 8, 33, 5, 0},    // a last run of one chunk
           {128, 2, 8, 67, 1, 1},   // moments off the alignment
           {256, 2, 8, 70, 9, 0},
           {80, 2, 16, 35, 1, 0},
           {34, 3, 8, 50, 4, 0},
           {2, 1, 8, 40, 0, 0},
       })) {
    moment_update(*backend, generator, info.multiprocessors, c);
  }
  refusals(*backend);
  return check::verdict();
}
