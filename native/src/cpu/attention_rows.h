// Scores, softmax and weighted sums of rows; included by one file an instruction set.
#pragma once

#include <limits>
#include <type_traits>

#include "cpu/attention_kernels.h"
#include "cpu/vector.h"

namespace skv::cpu {
namespace {

// Accumulators, loaded rows and a query must fit in 16 registers (32 with AVX-512). A group is 4 queries as a rule, and
// rows are widened once for a tile of queries.
constexpr int kQueryTile = kLanes == 4 ? 2 : 4;
constexpr int kTokenTile = kLanes == 8 ? 2 : 4;
// Of sums: more columns want fewer weights, where widening is cheap.
template <class T>
constexpr int kSumQueryTile = kLanes == 8 && !std::is_same_v<T, Float8> ? 2 : kQueryTile;
template <class T>
constexpr int kColumnTile = kLanes == 8 ? 8 / kSumQueryTile<T> : 4;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

template <class T, int kQueries, int kTokens>
inline void score_tile(const float* queries, std::int64_t query_stride, const T* rows, int dim, float* scores,
                       std::int64_t score_stride) {
  Vector sums[kQueries][kTokenTile] = {};
  const auto add = [&](int at, auto&& load_row) {
    Vector row[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      row[t] = load_row(rows + static_cast<std::int64_t>(t) * dim + at);
    }
#pragma GCC unroll 8
    for (int g = 0; g < kQueries; ++g) {
      const Vector query = load(queries + g * query_stride + at);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sums[g][t] = query * row[t] + sums[g][t];
      }
    }
  };
  const int whole = dim - rest_of_vector(dim);
  int at = 0;
  if constexpr (kPairs<T>) {
    for (; at + 2 * kLanes <= dim; at += 2 * kLanes) {
      Pair row[kTokens];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        row[t] = load_pair(rows + static_cast<std::int64_t>(t) * dim + at);
      }
#pragma GCC unroll 8
      for (int g = 0; g < kQueries; ++g) {
        const Vector even = load(queries + g * query_stride + at), odd = load(queries + g * query_stride + at + kLanes);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          sums[g][t] = even * row[t].even + sums[g][t];
          sums[g][t] = odd * row[t].odd + sums[g][t];
        }
      }
    }
  }
  for (; at < whole; at += kLanes) {
    add(at, [](const T* p) { return load(p); });
  }
  if (whole < dim) {
    const int rest = dim - whole;
    add(whole, [rest](const T* p) { return load_first(p, rest); });
  }
  constexpr int kAtOnce = 4 / kTokenTile;
#pragma GCC unroll 8
  for (int first = 0; first < kQueries; first += kAtOnce) {
    const auto sum = [&](int i) {
      const int g = first + i / kTokenTile;
      return g < kQueries ? sums[g][i % kTokenTile] : Vector{};
    };
    const Sums of = sums_of(sum(0), sum(1), sum(2), sum(3));
    for (int g = first; g < kQueries && g < first + kAtOnce; ++g) {
      std::memcpy(scores + g * score_stride, of.at + (g - first) * kTokenTile, kTokens * sizeof(float));
    }
  }
}

template <class T, int kQueries>
void score_queries(const float* queries, std::int64_t query_stride, const T* rows, std::int64_t count, int dim,
                   float* scores, std::int64_t score_stride, const void* ahead) {
  // Queries in the order in which the rows are widened.
  alignas(kVectorBytes) float parted[kPairs<T> ? kQueries * SKV_MAX_HEAD_DIM : 1];
  if constexpr (kPairs<T>) {
    for (int g = 0; g < kQueries; ++g) {
      const float* const from = queries + g * query_stride;
      float* const to = parted + g * SKV_MAX_HEAD_DIM;
      // Padded rows are whole pairs; what does not fill a pair of the row stays as it is.
      for (int at = 0; at < dim; at += 2 * kLanes) {
        const bool pair_of_row = at + 2 * kLanes <= dim;
        const Vector low = load(from + at), high = load(from + at + kLanes);
        const Pair pair = split(low, high);
        store(to + at, pair_of_row ? pair.even : low);
        store(to + at + kLanes, pair_of_row ? pair.odd : high);
      }
    }
    queries = parted;
    query_stride = SKV_MAX_HEAD_DIM;
  }
  const std::int64_t row_bytes = dim * static_cast<std::int64_t>(sizeof(T));
  std::int64_t t = 0;
  for (; t + kTokenTile <= count; t += kTokenTile) {
    if (ahead != nullptr) {
      ask_for(ahead, t * row_bytes, kTokenTile * row_bytes);
    }
    score_tile<T, kQueries, kTokenTile>(queries, query_stride, rows + t * dim, dim, scores + t, score_stride);
  }
  for (; t < count; ++t) {
    score_tile<T, kQueries, 1>(queries, query_stride, rows + t * dim, dim, scores + t, score_stride);
  }
}

// Calls work(number, first) for tiles of queries that cover [0, group); the number is a constant.
template <int kTile, class Work>
inline void over_queries(int group, Work&& work) {
  int g = 0;
  for (; g + kTile <= group; g += kTile) {
    work(std::integral_constant<int, kTile>{}, g);
  }
  const int left = group - g;
  if constexpr (kTile > 2) {
    if (left == 3) {
      work(std::integral_constant<int, 3>{}, g);
    } else if (left == 2) {
      work(std::integral_constant<int, 2>{}, g);
    }
  }
  if (left == 1) {
    work(std::integral_constant<int, 1>{}, g);
  }
}

// As RowKernels::score; while it works it asks for `ahead` [count][dim], if not null.
template <class T>
void score_ahead(const float* queries, int group, const void* rows, std::int64_t count, int dim, float* scores,
                 std::int64_t score_stride, const void* ahead) {
  const std::int64_t query_stride = padded_dim(dim);
  over_queries<kQueryTile>(group, [&](auto number, int g) {
    score_queries<T, number>(queries + g * query_stride, query_stride, static_cast<const T*>(rows), count, dim,
                             scores + g * score_stride, score_stride, g == 0 ? ahead : nullptr);
  });
}

// A tile of sums stays in registers while all rows pass.
template <class T, int kQueries, int kColumns>
inline void accumulate_tile(const float* weights, std::int64_t weight_stride, const T* rows, std::int64_t count,
                            int dim, int width, float* sums, std::int64_t sum_stride) {
  constexpr bool kInPairs = kPairs<T> && kColumns % 2 == 0;
  Vector tile[kQueries][kColumns];
#pragma GCC unroll 8
  for (int g = 0; g < kQueries; ++g) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      tile[g][c] = load(sums + g * sum_stride + c * kLanes);
    }
    if constexpr (kInPairs) {
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; c += 2) {
        const Pair pair = split(tile[g][c], tile[g][c + 1]);
        tile[g][c] = pair.even;
        tile[g][c + 1] = pair.odd;
      }
    }
  }
  const auto add = [&](std::int64_t t, auto&& load_row) {
    Vector row[kColumns];
    load_row(rows + t * dim, row);
#pragma GCC unroll 8
    for (int g = 0; g < kQueries; ++g) {
      const Vector weight = broadcast(weights[g * weight_stride + t]);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        tile[g][c] = weight * row[c] + tile[g][c];
      }
    }
  };
  if (width == kColumns * kLanes) {
    for (std::int64_t t = 0; t < count; ++t) {
      add(t, [](const T* from, Vector* row) {
        if constexpr (kInPairs) {
#pragma GCC unroll 8
          for (int c = 0; c < kColumns; c += 2) {
            const Pair pair = load_pair(from + c * kLanes);
            row[c] = pair.even;
            row[c + 1] = pair.odd;
          }
        } else {
#pragma GCC unroll 8
          for (int c = 0; c < kColumns; ++c) {
            row[c] = load(from + c * kLanes);
          }
        }
      });
    }
  } else {
    // The last columns, less than a vector.
    for (std::int64_t t = 0; t < count; ++t) {
      add(t, [width](const T* from, Vector* row) { row[0] = load_first(from, width); });
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < kQueries; ++g) {
    if constexpr (kInPairs) {
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; c += 2) {
        const Pair joined = join({tile[g][c], tile[g][c + 1]});
        tile[g][c] = joined.even;
        tile[g][c + 1] = joined.odd;
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      store(sums + g * sum_stride + c * kLanes, tile[g][c]);
    }
  }
}

// As RowKernels::accumulate; asks for `ahead` [count][dim], if not null.
template <class T>
void accumulate_ahead(const float* weights, std::int64_t weight_stride, int group, const void* rows, std::int64_t count,
                      int dim, float* sums, const void* ahead) {
  const std::int64_t sum_stride = padded_dim(dim);
  const T* const typed = static_cast<const T*>(rows);
  if (ahead != nullptr) {
    ask_for(ahead, 0, count * dim * static_cast<std::int64_t>(sizeof(T)));
  }
  over_queries<kSumQueryTile<T>>(group, [&](auto number, int g) {
    const float* const w = weights + g * weight_stride;
    float* const s = sums + g * sum_stride;
    int at = 0;
    for (; at + kColumnTile<T> * kLanes <= dim; at += kColumnTile<T> * kLanes) {
      accumulate_tile<T, number, kColumnTile<T>>(w, weight_stride, typed + at, count, dim, kColumnTile<T> * kLanes,
                                                 s + at, sum_stride);
    }
    for (; at + 2 * kLanes <= dim; at += 2 * kLanes) {
      accumulate_tile<T, number, 2>(w, weight_stride, typed + at, count, dim, 2 * kLanes, s + at, sum_stride);
    }
    for (; at < dim; at += kLanes) {
      const int width = dim - at < kLanes ? dim - at : kLanes;
      accumulate_tile<T, number, 1>(w, weight_stride, typed + at, count, dim, width, s + at, sum_stride);
    }
  });
}

// Vectors of values behind which -infinity stands.
template <class Visit>
inline void over_values(const float* values, std::int64_t count, Visit&& visit) {
  std::int64_t t = 0;
  for (; t + kLanes <= count; t += kLanes) {
    visit(load(values + t));
  }
  if (t < count) {
    float last[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      last[i] = t + i < count ? values[t + i] : kNothing;
    }
    visit(load(last));
  }
}

inline float largest_value(const float* values, std::int64_t count) {
  Vector largest_so_far = broadcast(kNothing);
  over_values(values, count, [&](Vector x) { largest_so_far = largest(x, largest_so_far); });
  return largest_of(largest_so_far);
}

void soften(float* scores, std::int64_t score_stride, int group, std::int64_t count, const RunningSoftmax& softmax,
            float* sums, int dim) {
  const std::int64_t width = padded_dim(dim);
  for (int g = 0; g < group; ++g) {
    float* const row = scores + g * score_stride;
    const float before = softmax.largest[g];
    const float here = largest_value(row, count);
    const float now = here > before ? here : before;
    if (now > before) {
      // Nothing before: the factor would be of infinities when now is one as well; 0 is what it means.
      const float factor = before == kNothing ? 0.0F : exponential(broadcast(before - now))[0];
      softmax.sum[g] *= factor;
      softmax.largest[g] = now;
      for (std::int64_t d = 0; d < width; d += kLanes) {
        store(sums + g * width + d, load(sums + g * width + d) * factor);
      }
    }
    const std::int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    for (std::int64_t t = count; t < padded; ++t) {
      row[t] = kNothing;
    }
    const float base = now == kNothing ? 0.0F : now;
    Vector sum = {};
    for (std::int64_t t = 0; t < padded; t += kLanes) {
      const Vector weight = exponential(load(row + t) - base);
      store(row + t, weight);
      sum += weight;
    }
    softmax.sum[g] += sum_of(sum);
  }
}

void log_sum(const float* values, std::int64_t count, float* largest_out, float* sum_out) {
  const float at_most = largest_value(values, count);
  const float base = at_most == kNothing ? 0.0F : at_most;
  Vector sum = {};
  over_values(values, count, [&](Vector x) { sum += exponential(x - base); });
  *largest_out = at_most;
  *sum_out = sum_of(sum);
}

void log_sum_of_means(const float* logits, const float* radius, float weight, std::int64_t count, float* largest_out,
                      float* sum_out) {
  // What is looked at twice is still in the nearest cache the second time.
  constexpr std::int64_t kBlock = 1024;
  alignas(kVectorBytes) float means[kBlock];
  float before = kNothing;
  Vector sum = {};
  for (std::int64_t first = 0; first < count; first += kBlock) {
    const std::int64_t here = count - first < kBlock ? count - first : kBlock;
    Vector most = broadcast(before);
    std::int64_t c = 0;
    for (; c + kLanes <= here; c += kLanes) {
      const Vector mean = load(logits + first + c) - weight * load(radius + first + c);
      store(means + c, mean);
      most = largest(mean, most);
    }
    for (; c < here; c += kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        const std::int64_t at = first + c + i;
        means[c + i] = at < count ? logits[at] - weight * radius[at] : kNothing;
      }
      most = largest(load(means + c), most);
    }
    const float now = largest_of(most), base = now == kNothing ? 0.0F : now;
    if (now > before) {
      sum *= before == kNothing ? 0.0F : exponential(broadcast(before - now))[0];
      before = now;
    }
    // Two sums: an exponential is a chain of operations that wait for each other.
    Vector other = {};
    for (c = 0; c + kLanes < here; c += 2 * kLanes) {
      sum += exponential(load(means + c) - base);
      other += exponential(load(means + c + kLanes) - base);
    }
    if (c < here) {
      sum += exponential(load(means + c) - base);
    }
    sum += other;
  }
  *largest_out = before;
  *sum_out = sum_of(sum);
}

// --- One type's table -------------------------------------------------------------------------

// Tokens whose scores are held at once: their keys and values stay in the nearest cache meanwhile.
constexpr std::int64_t kBlockTokens = 64;

template <class T>
void score(const float* queries, int group, const void* rows, std::int64_t count, int dim, float* scores,
           std::int64_t score_stride) {
  score_ahead<T>(queries, group, rows, count, dim, scores, score_stride, nullptr);
}

template <class T>
void accumulate(const float* weights, std::int64_t weight_stride, int group, const void* rows, std::int64_t count,
                int dim, float* sums) {
  accumulate_ahead<T>(weights, weight_stride, group, rows, count, dim, sums, nullptr);
}

template <class T>
void attend(const float* queries, int group, const void* keys, const void* values, std::int64_t count, int dim,
            const RunningSoftmax& softmax, float* sums) {
  alignas(64) float scores[SKV_MAX_GROUP * kBlockTokens];
  for (std::int64_t t = 0; t < count; t += kBlockTokens) {
    const std::int64_t tokens = count - t < kBlockTokens ? count - t : kBlockTokens;
    const T* const block_keys = static_cast<const T*>(keys) + t * dim;
    const T* const block_values = static_cast<const T*>(values) + t * dim;
    // Full blocks ahead only: what is asked for must be in the array.
    const bool another = t + kBlockTokens + tokens <= count;
    score_ahead<T>(queries, group, block_keys, tokens, dim, scores, kBlockTokens, block_values);
    soften(scores, kBlockTokens, group, tokens, softmax, sums, dim);
    accumulate_ahead<T>(scores, kBlockTokens, group, block_values, tokens, dim, sums,
                        another ? block_keys + kBlockTokens * dim : nullptr);
  }
}

template <class T>
void score_chunks(const float* queries, int group, const void* const* rows, std::int64_t chunks, int chunk, int dim,
                  float* scores, std::int64_t score_stride) {
  for (std::int64_t i = 0; i < chunks; ++i) {
    score_ahead<T>(queries, group, rows[i], chunk, dim, scores + i * chunk, score_stride,
                   i + 1 < chunks ? rows[i + 1] : nullptr);
  }
}

template <class T>
void attend_chunks(const float* queries, int group, const void* const* keys, const void* const* values,
                   std::int64_t chunks, int chunk, int dim, const RunningSoftmax& softmax, float* sums) {
  alignas(64) float scores[SKV_MAX_GROUP * kBlockTokens];
  const std::int64_t block = kBlockTokens / chunk;
  for (std::int64_t first = 0; first < chunks; first += block) {
    const std::int64_t here = chunks - first < block ? chunks - first : block;
    for (std::int64_t i = 0; i < here; ++i) {
      score_ahead<T>(queries, group, keys[first + i], chunk, dim, scores + i * chunk, kBlockTokens, values[first + i]);
    }
    soften(scores, kBlockTokens, group, here * chunk, softmax, sums, dim);
    for (std::int64_t i = 0; i < here; ++i) {
      const std::int64_t next = first + block + i;
      accumulate_ahead<T>(scores + i * chunk, kBlockTokens, group, values[first + i], chunk, dim, sums,
                          next < chunks ? keys[next] : nullptr);
    }
  }
}

template <class T>
void landmarks(const float* queries, int group, const float* weights, const void* rows, const float* scales,
               const float* radius, std::int64_t count, int dim, float* logits, std::int64_t logit_stride,
               float* largest, float* sum) {
  const std::int64_t asked = count > kBlockTokens ? count - kBlockTokens : 0;
  const T* const typed = static_cast<const T*>(rows);
  // Asked for a block ahead they take a sixth less time than left to the processor (Zen 3).
  score_ahead<T>(queries, group, typed, asked, dim, logits, logit_stride, typed + kBlockTokens * dim);
  score<T>(queries, group, typed + asked * dim, count - asked, dim, logits + asked, logit_stride);
  for (int g = 0; g < group; ++g) {
    float* __restrict__ const row = logits + g * logit_stride;
    const float weight = weights[g];
    if (scales != nullptr) {
      for (std::int64_t c = 0; c < count; ++c) {
        row[c] *= scales[c];
      }
    }
    for (std::int64_t c = 0; c < count; ++c) {
      const float logit = row[c] + weight * radius[c];
      row[c] = radius[c] < 0 ? kNothing : logit;
    }
    log_sum(row, count, largest + g, sum + g);
  }
}

template <class T>
constexpr RowKernels row_kernels() {
  return {score<T>, landmarks<T>, accumulate<T>, score_chunks<T>, attend<T>, attend_chunks<T>};
}

void order_chunks(const float* logits, std::int64_t logit_stride, int group, const float* log_sum_exp,
                  const float* radius, std::int64_t count, std::uint32_t* keys) {
  std::int64_t c = 0;
  const auto order = [&](Vector score, Vector at_radius) {
    // As order_key() has it, for every lane.
    const IntVector bits = reinterpret_cast<IntVector>(score + 0.0F);
    const IntVector sign = bits >> 31;
    const IntVector key = bits ^ (sign | std::numeric_limits<std::int32_t>::min());
    const IntVector number = score == score ? key : IntVector{} + 1;
    return at_radius < 0 ? IntVector{} : number;
  };
  for (; c + kLanes <= count; c += kLanes) {
    Vector score = load(logits + c) - log_sum_exp[0];
    for (int g = 1; g < group; ++g) {
      score = largest(load(logits + g * logit_stride + c) - log_sum_exp[g], score);
    }
    const IntVector key = order(score, load(radius + c));
    std::memcpy(keys + c, &key, sizeof(key));
  }
  for (; c < count; ++c) {
    float score = logits[c] - log_sum_exp[0];
    for (int g = 1; g < group; ++g) {
      const float other = logits[g * logit_stride + c] - log_sum_exp[g];
      score = other > score ? other : score;
    }
    keys[c] = static_cast<std::uint32_t>(order(broadcast(score), broadcast(radius[c]))[0]);
  }
}

}  // namespace
}  // namespace skv::cpu
