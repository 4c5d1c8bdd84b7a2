// Scores, softmax and weighted sums of rows; included by one file an instruction set.
#pragma once

#include <limits>
#include <type_traits>

#include "cpu/attention_kernels.h"
#include "cpu/vector.h"

namespace skv::cpu {
namespace {

// Accumulators, loaded rows and a query must fit in 16 registers (32 with AVX-512).
constexpr int kQueryTile = kLanes == 16 ? 4 : 2;
constexpr int kTokenTile = 4;
constexpr int kColumnTile = 4;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr std::int64_t kCacheLine = 64;

inline void ask_for(const void* begin, std::int64_t offset, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += kCacheLine) {
    ask_for_line(static_cast<const char*>(begin) + offset + at);
  }
}

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
#pragma GCC unroll 8
  for (int g = 0; g < kQueries; ++g) {
    const Sums of = sums_of(sums[g][0], sums[g][1], sums[g][2], sums[g][3]);
    std::memcpy(scores + g * score_stride, of.at, kTokens * sizeof(float));
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
template <class Work>
inline void over_queries(int group, Work&& work) {
  int g = 0;
  for (; g + kQueryTile <= group; g += kQueryTile) {
    work(std::integral_constant<int, kQueryTile>{}, g);
  }
  const int left = group - g;
  if constexpr (kQueryTile > 2) {
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
  over_queries(group, [&](auto number, int g) {
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
  over_queries(group, [&](auto number, int g) {
    const float* const w = weights + g * weight_stride;
    float* const s = sums + g * sum_stride;
    int at = 0;
    for (; at + kColumnTile * kLanes <= dim; at += kColumnTile * kLanes) {
      accumulate_tile<T, number, kColumnTile>(w, weight_stride, typed + at, count, dim, kColumnTile * kLanes, s + at,
                                              sum_stride);
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
  // Two at a time: an exponential is a chain of operations that wait for each other.
  constexpr std::int64_t kStep = 2 * kLanes;
  const auto over_means = [&](auto&& visit) {
    std::int64_t c = 0;
    for (; c + kStep <= count; c += kStep) {
      visit(load(logits + c) - weight * load(radius + c), 0);
      visit(load(logits + c + kLanes) - weight * load(radius + c + kLanes), 1);
    }
    for (; c < count; c += kLanes) {
      float last[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        last[i] = c + i < count ? logits[c + i] - weight * radius[c + i] : kNothing;
      }
      visit(load(last), 0);
    }
  };
  Vector most[2] = {broadcast(kNothing), broadcast(kNothing)};
  over_means([&](Vector x, int i) { most[i] = largest(x, most[i]); });
  const float at_most = largest_of(largest(most[0], most[1]));
  const float base = at_most == kNothing ? 0.0F : at_most;
  Vector sum[2] = {};
  over_means([&](Vector x, int i) { sum[i] += exponential(x - base); });
  *largest_out = at_most;
  *sum_out = sum_of(sum[0] + sum[1]);
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
void landmarks(const float* queries, int group, const float* weights, const void* rows, const float* scales,
               const float* radius, std::int64_t count, int dim, float* logits, std::int64_t logit_stride,
               float* largest, float* sum) {
  score<T>(queries, group, rows, count, dim, logits, logit_stride);
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
  return {score<T>, landmarks<T>, accumulate<T>, attend<T>};
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
