#include "cpu/attention_kernels.h"

namespace skv::cpu {

namespace portable {
extern const AttentionKernels kAttentionKernels;
}
namespace avx2 {
extern const AttentionKernels kAttentionKernels;
}
namespace avx512 {
extern const AttentionKernels kAttentionKernels;
}
namespace avx512_bf16 {
extern const AttentionKernels kAttentionKernels;
}

const AttentionKernels& attention_kernels(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512Bf16:
      return avx512_bf16::kAttentionKernels;
    case InstructionSet::kAvx512:
      return avx512::kAttentionKernels;
    case InstructionSet::kAvx2:
      return avx2::kAttentionKernels;
    default:
      return portable::kAttentionKernels;
  }
}

}  // namespace skv::cpu
