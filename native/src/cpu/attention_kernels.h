// The inner loops of attention, once an instruction set, behind one table. All sums are fp32. What a row's result
// is does not depend on the rows beside it.
#pragma once

#include <cstdint>

#include "cpu/execution.h"
#include "shadowkv_types.h"

namespace skv::cpu {

// Queries and sums of a head, as the kernels want them: [rows][padded_dim(D)] floats, zero behind D.
constexpr std::int64_t kDimMultiple = 32;
constexpr std::int64_t padded_dim(std::int64_t dim) {
  return (dim + kDimMultiple - 1) / kDimMultiple * kDimMultiple;
}

// Rows of scores are a multiple of this many floats apart.
constexpr std::int64_t kScoreMultiple = 16;

// A softmax that has seen some of its keys: for each of `group` queries the largest score and the sum of e^(score -
// largest).
struct RunningSoftmax {
  float* largest;  // [group], -infinity at first
  float* sum;      // [group], 0 at first
};

// Landmarks that are looked at together: a quarter of a megabyte at 128 bf16 dimensions.
constexpr std::int64_t kLandmarks = 1024;

// Kernels over rows of one element type.
struct RowKernels {
  // scores[g][t] = queries[g] . rows[t], for g < group, t < count. rows [count][dim], dense.
  void (*score)(const float* queries, int group, const void* rows, std::int64_t count, int dim, float* scores,
                std::int64_t score_stride);
  // Logits of landmarks, rows [count][dim]: logits[g][c] = queries[g] . rows[c] * scales[c] + weights[g] * radius[c],
  // or -infinity where radius[c] < 0; no scales: null. Then their largest [group], and the sum [group] of e^(logit -
  // largest). count <= kLandmarks.
  void (*landmarks)(const float* queries, int group, const float* weights, const void* rows, const float* scales,
                    const float* radius, std::int64_t count, int dim, float* logits, std::int64_t logit_stride,
                    float* largest, float* sum);
  // sums[g] += sum over t of weights[g][t] * rows[t].
  void (*accumulate)(const float* weights, std::int64_t weight_stride, int group, const void* rows, std::int64_t count,
                     int dim, float* sums);
  // The same scores of chunks that lie apart: rows[i] [chunk][dim], scores[g][i * chunk + t], for i < chunks.
  void (*score_chunks)(const float* queries, int group, const void* const* rows, std::int64_t chunks, int chunk,
                       int dim, float* scores, std::int64_t score_stride);
  // Attention over keys and values [count][dim], dense: adds to softmax and sums [group][padded_dim(dim)].
  void (*attend)(const float* queries, int group, const void* keys, const void* values, std::int64_t count, int dim,
                 const RunningSoftmax& softmax, float* sums);
  // The same over chunks that lie apart: keys[i] and values[i] [chunk][dim], for i < chunks. What comes out does not
  // depend on where they lie.
  void (*attend_chunks)(const float* queries, int group, const void* const* keys, const void* const* values,
                        std::int64_t chunks, int chunk, int dim, const RunningSoftmax& softmax, float* sums);
};

// Rows whose products are summed before the sum is added to what is there: it keeps sums of many rows exact.
constexpr std::int64_t kProductsAtOnce = 128;

// Cache lines that will be wanted next: asked for a few at a time, they hold nobody up.
struct AheadLines {
  const void* const* lines;
  std::int64_t count;
};

// Keys that are rebuilt together; a chunk is one or two of them.
constexpr std::int64_t kRebuiltGroup = 8;

// Queries of consecutive tokens that share keys and values, and the sums of their attention. A query is a column;
// columns come in tiles that a product keeps in registers.
struct PrefillTile {
  static constexpr std::int64_t kColumns = 128;
  static constexpr std::int64_t kKeys = 64;  // keys whose scores are held at once

  std::int32_t storage_type;
  int dim;
  const void* keys;                       // [..][dim], row = position
  const void* values;                     // [..][dim]
  const float* queries;                   // [kColumns][padded_dim(dim)], times 1/sqrt(D); zero where there is no query
  const std::int32_t* last_key;           // [kColumns]: last position that a query sees
  std::int64_t unmasked_keys, key_count;  // every query sees the first; none sees one behind the second
  float* output;                          // [kColumns][padded_dim(dim)]
  void* scratch;                          // prefill_scratch_bytes(dim)
};

struct AttentionKernels {
  // By SKV_ type: F32, BF16, F16, F8_E4M3, I8.
  RowKernels rows[5];

  // Turns scores [group][score_stride] of `count` more keys into weights against the new largest score, and brings
  // softmax and sums [group][padded_dim(dim)] to it. Writes behind count, up to a multiple of kScoreMultiple.
  void (*soften)(float* scores, std::int64_t score_stride, int group, std::int64_t count, const RunningSoftmax& softmax,
                 float* sums, int dim);

  // Largest of count values, and sum of e^(value - largest); -infinity and 0 of none. -infinity adds nothing.
  void (*log_sum)(const float* values, std::int64_t count, float* largest, float* sum);

  // Order keys (select_best.h) of chunks: of the largest, over `group` queries, of logits[g][c] - log_sum_exp[g]; 0
  // where radius[c] < 0.
  void (*order_chunks)(const float* logits, std::int64_t logit_stride, int group, const float* log_sum_exp,
                       const float* radius, std::int64_t count, std::uint32_t* keys);

  // log_sum() of logits[c] - weight * radius[c]: of what landmarks() makes of queries and rows alone.
  void (*log_sum_of_means)(const float* logits, const float* radius, float weight, std::int64_t count, float* largest,
                           float* sum);

  // sums[i][j] += sum over t of a[t][i] * b[t][j], for t < count, i < padded_dim(a_dim) and j < padded_dim(b_dim), the
  // widths of the rows. count <= kProductsAtOnce; one rounding a product and one more for each of them.
  void (*add_products)(const float* a, int a_dim, const float* b, int b_dim, std::int64_t count, float* sums);

  // Rebuilt keys: the basis of a head [rank][dim] brought into the order that rebuild() reads, and keys
  // [groups * kRebuiltGroup][padded_dim(dim)] = coefficients . basis. coefficients[group]: [kRebuiltGroup][rank] as
  // they lie, where plain_coefficients() says so, otherwise packed. type: of the basis, and of the coefficients unless
  // they are I8.
  std::uint64_t (*packed_basis_bytes)(std::int32_t type, int rank, int dim);
  std::uint64_t (*packed_coefficients_bytes)(std::int32_t type, int rank, std::int64_t tokens);
  void (*pack_basis)(std::int32_t type, const void* basis, int rank, int dim, void* packed);
  bool (*plain_coefficients)(std::int32_t type, std::int32_t coefficient_type, int rank);
  void (*pack_coefficients)(std::int32_t type, std::int32_t coefficient_type, const void* rows, int rank,
                            std::int64_t tokens, void* packed);
  void (*rebuild)(std::int32_t type, const void* const* coefficients, const void* packed_basis, int rank, int dim,
                  std::int64_t groups, float* keys, const AheadLines& ahead);
  // Rounds floats to bf16 where the processor has an instruction for it, which takes denormal numbers for zero; or
  // null.
  void (*round_bf16)(const float* from, void* to, std::int64_t count);
  // Rotates keys[t], a row of padded_dim(dim) floats, to position + t.
  void (*rotate)(const skv_rope& rope, std::int64_t position, std::int64_t tokens, int dim, float* keys);

  std::uint64_t (*prefill_scratch_bytes)(int dim);
  void (*prefill)(const PrefillTile& tile);
};

const AttentionKernels& attention_kernels(InstructionSet set);

}  // namespace skv::cpu
