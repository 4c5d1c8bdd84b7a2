#include "cpu/row_math.h"

#include "cpu/row_math_kernels.h"

namespace skv::cpu {

namespace avx2 {
extern const RowMath kRowMath;
}
namespace avx512 {
extern const RowMath kRowMath;
}

const RowMath& row_math(InstructionSet set) {
  static constexpr RowMath kPortable = row_math_here();
  switch (set) {
    case InstructionSet::kAvx512:
    case InstructionSet::kAvx512Bf16:
      return avx512::kRowMath;
    case InstructionSet::kAvx2:
      return avx2::kRowMath;
    default:
      return kPortable;
  }
}

}  // namespace skv::cpu
