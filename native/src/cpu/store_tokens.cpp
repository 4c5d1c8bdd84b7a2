#include "cpu/elements.h"
#include "cpu/rotation.h"

namespace skv::cpu {

// keys, values [count][K][D] -> rings [K][capacity][D] of rotated keys and values, and the keys as they came
// [capacity][K*D]. Floor: each array given through memory once. Bound by memory.
void store_tokens(const skv_store_tokens_params& p, Execution& execution) {
  const std::int64_t dim = p.head_dim;
  const std::int64_t width = p.key_value_heads * dim;
  const std::int64_t key_stride = p.key_stride ? p.key_stride : width;
  const std::int64_t value_stride = p.value_stride ? p.value_stride : width;
  const Widen widen = widen_function(p.input_type, execution.set);
  const Narrow narrow = narrow_function(p.storage_type, execution.set);
  const RowConversion convert(p.input_type, p.storage_type, execution.set);
  constexpr std::int64_t kTokens = 16;
  execution.pool.parallel_ranges(p.count, kTokens, [&](std::int64_t begin, std::int64_t end) {
    float head[SKV_MAX_HEAD_DIM];
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int64_t position = p.first_position + token;
      const std::int64_t row = position % p.capacity;
      if (p.raw_keys) {
        convert(element_at(p.keys, p.input_type, token * key_stride),
                element_at(p.raw_keys, p.storage_type, row * width), width);
      }
      if (p.rotated_keys) {
        const Rotation rotation(p.rope, position);
        for (std::int64_t h = 0; h < p.key_value_heads; ++h) {
          widen(element_at(p.keys, p.input_type, token * key_stride + h * dim), head, dim);
          rotation.apply(head);
          narrow(head, element_at(p.rotated_keys, p.storage_type, (h * p.capacity + row) * dim), dim);
        }
      }
      if (p.stored_values) {
        for (std::int64_t h = 0; h < p.key_value_heads; ++h) {
          convert(element_at(p.values, p.input_type, token * value_stride + h * dim),
                  element_at(p.stored_values, p.storage_type, (h * p.capacity + row) * dim), dim);
        }
      }
    }
  });
}

std::uint64_t store_tokens_workspace(const skv_store_tokens_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
