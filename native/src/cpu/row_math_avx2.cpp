#include "cpu/row_math_kernels.h"

namespace skv::cpu::avx2 {

extern const RowMath kRowMath;
const RowMath kRowMath = row_math_here();

}  // namespace skv::cpu::avx2
