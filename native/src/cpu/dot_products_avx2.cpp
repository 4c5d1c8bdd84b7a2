#include "cpu/dot_products_kernels.h"

namespace skv::cpu::avx2 {

RowProducts row_products_function(std::int32_t type) {
  return row_products_here(type);
}

}  // namespace skv::cpu::avx2
