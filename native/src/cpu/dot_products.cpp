#include "cpu/dot_products.h"

#include "cpu/dot_products_kernels.h"

namespace skv::cpu {

namespace avx2 {
RowProducts row_products_function(std::int32_t type);
}
namespace avx512 {
RowProducts row_products_function(std::int32_t type);
}

RowProducts row_products_function(std::int32_t type, InstructionSet set) {
  const RowProducts function = set >= InstructionSet::kAvx512 ? avx512::row_products_function(type)
                               : set == InstructionSet::kAvx2 ? avx2::row_products_function(type)
                                                              : row_products_here(type);
  if (!function) {
    throw Error(SKV_UNSUPPORTED, "rows of type " + std::to_string(type) + " cannot be multiplied");
  }
  return function;
}

}  // namespace skv::cpu
