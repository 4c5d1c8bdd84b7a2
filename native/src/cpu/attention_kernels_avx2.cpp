#include "cpu/attention_prefill.h"
#include "cpu/attention_product.h"
#include "cpu/attention_rows.h"

namespace skv::cpu::avx2 {

extern const AttentionKernels kAttentionKernels;
const AttentionKernels kAttentionKernels = {{row_kernels<float>(), row_kernels<BFloat16>(), row_kernels<Float16>(),
                                             row_kernels<Float8>(), row_kernels<std::int8_t>()},
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
                                            rotate,
                                            prefill_scratch_bytes,
                                            prefill};

}  // namespace skv::cpu::avx2
