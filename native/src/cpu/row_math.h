// Arithmetic on rows of floats, once an instruction set, behind one table.
#pragma once

#include <cstdint>

#include "cpu/execution.h"

namespace skv::cpu {

struct RowMath {
  // to[i] = gate[i] / (1 + e^-gate[i]) * up[i]; to may be gate or up.
  void (*silu_multiply)(const float* gate, const float* up, std::int64_t count, float* to);

  // to [4 * counters] = mean + deviation * the numbers of random.h, from counter `first` on, to a few roundings.
  void (*normals)(std::uint64_t first, std::uint64_t seed, float mean, float deviation, std::int64_t counters,
                  float* to);

  // to[i] = from[i] * scale * weight[i]; to may be from.
  void (*scale_multiply)(const float* from, float scale, const float* weight, std::int64_t count, float* to);

  // The largest element, -infinity of none. NaN when one is among them.
  float (*largest)(const float* row, std::int64_t count);
  // First element that equals `value`, or count.
  std::int64_t (*find)(const float* row, std::int64_t count, float value);

  // mean [dim] of rows [count][dim].
  void (*mean)(const float* rows, std::int64_t count, std::int64_t dim, float* mean);
  // product[t] = rows[t] . other [dim], squares[t] = rows[t] . rows[t].
  void (*products)(const float* rows, std::int64_t count, std::int64_t dim, const float* other, float* product,
                   float* squares);
  // The largest squared distance of a row from `point` [dim]. NaN when one is among the rows.
  float (*farthest)(const float* rows, std::int64_t count, std::int64_t dim, const float* point);
};

const RowMath& row_math(InstructionSet set);

}  // namespace skv::cpu
