#include "cpu/attention_pairs.h"
#include "cpu/attention_prefill.h"
#include "cpu/attention_product.h"
#include "cpu/attention_rows.h"
#include "cpu/byte_scores.h"

namespace skv::cpu::avx512_bf16 {
namespace {

void score_bf16(const float* queries, int group, const void* rows, std::int64_t count, int dim, float* scores,
                std::int64_t score_stride) {
  (fits_pairs(dim) ? score_pairs : score<BFloat16>)(queries, group, rows, count, dim, scores, score_stride);
}

void landmarks_bf16(const float* queries, int group, const float* weights, const void* rows, const float* scales,
                    const float* radius, std::int64_t count, int dim, float* logits, std::int64_t logit_stride,
                    float* largest, float* sum) {
  (fits_pairs(dim) ? landmark_pairs : landmarks<BFloat16>)(queries, group, weights, rows, scales, radius, count, dim,
                                                           logits, logit_stride, largest, sum);
}

void landmarks_i8(const float* queries, int group, const float* weights, const void* rows, const float* scales,
                  const float* radius, std::int64_t count, int dim, float* logits, std::int64_t logit_stride,
                  float* largest, float* sum) {
  (fits_bytes(dim) ? landmark_bytes : landmarks<std::int8_t>)(queries, group, weights, rows, scales, radius, count, dim,
                                                              logits, logit_stride, largest, sum);
}

void attend_bf16(const float* queries, int group, const void* keys, const void* values, std::int64_t count, int dim,
                 const RunningSoftmax& softmax, float* sums) {
  (fits_pairs(dim) ? attend_pairs : attend<BFloat16>)(queries, group, keys, values, count, dim, softmax, sums);
}

void score_chunks_bf16(const float* queries, int group, const void* const* rows, std::int64_t chunks, int chunk,
                       int dim, float* scores, std::int64_t score_stride) {
  (fits_pairs(dim) ? score_chunk_pairs : score_chunks<BFloat16>)(queries, group, rows, chunks, chunk, dim, scores,
                                                                 score_stride);
}

void attend_chunks_bf16(const float* queries, int group, const void* const* keys, const void* const* values,
                        std::int64_t chunks, int chunk, int dim, const RunningSoftmax& softmax, float* sums) {
  (fits_pairs(dim) ? attend_chunk_pairs : attend_chunks<BFloat16>)(queries, group, keys, values, chunks, chunk, dim,
                                                                   softmax, sums);
}

}  // namespace

extern const AttentionKernels kAttentionKernels;
const AttentionKernels kAttentionKernels = {
    {row_kernels<float>(),
     {score_bf16, landmarks_bf16, accumulate<BFloat16>, score_chunks_bf16, attend_bf16, attend_chunks_bf16},
     row_kernels<Float16>(),
     row_kernels<Float8>(),
     {score<std::int8_t>, landmarks_i8, accumulate<std::int8_t>, score_chunks<std::int8_t>, attend<std::int8_t>,
      attend_chunks<std::int8_t>}},
    soften,
    log_sum,
    order_chunks,
    log_sum_of_means,
    add_products,
    packed_basis_bytes,
    packed_coefficients_bytes,
    pack_basis,
    plain_coefficients,
    pack_coefficients,
    rebuild,
    round_bf16,
    rotate,
    prefill_scratch_bytes,
    prefill};

}  // namespace skv::cpu::avx512_bf16
