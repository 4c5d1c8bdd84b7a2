#include "cpu/new_tokens.h"

#include "cpu/attention_kernels.h"
#include "cpu/elements.h"

namespace skv::cpu {

void add_new_tokens(const NewTokens& n, Execution& execution,
                    TokenPlace (*place)(const void* context, std::int64_t session), const void* context) {
  const skv_geometry& g = n.geometry;
  const std::int64_t dim = g.head_dim, heads = g.query_heads + g.key_value_heads;
  const std::int64_t query_stride = n.query_stride != 0 ? n.query_stride : g.query_heads * dim;
  const std::int64_t key_stride = n.key_stride != 0 ? n.key_stride : g.key_value_heads * dim;
  const std::int64_t value_stride = n.value_stride != 0 ? n.value_stride : g.key_value_heads * dim;
  const AttentionKernels& kernels = attention_kernels(execution.set);
  const Widen widen = widen_function(n.input_type, execution.set);
  const Narrow narrow = narrow_function(g.storage_type, execution.set);
  constexpr std::int64_t kUnitHeads = 8;
  execution.pool.parallel_ranges(n.batch * heads, kUnitHeads, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) float row[SKV_MAX_HEAD_DIM];
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t session = at / heads, head = at % heads;
      const std::int64_t length = n.states[session].length;
      if (head < g.query_heads) {
        float* const rotated = n.rotated_queries + (session * g.query_heads + head) * dim;
        widen(element_at(n.queries, n.input_type, session * query_stride + head * dim), rotated, dim);
        if (length > 0) {
          kernels.rotate(n.rope, length - 1, 1, g.head_dim, rotated);
        }
        continue;
      }
      if (length == 0) {
        continue;
      }
      const std::int64_t key_head = head - g.query_heads;
      const TokenPlace to = place(context, session);
      const std::int64_t target = (key_head * to.rows + to.row) * dim;
      widen(element_at(n.keys, n.input_type, session * key_stride + key_head * dim), row, dim);
      kernels.rotate(n.rope, length - 1, 1, g.head_dim, row);
      narrow(row, element_at(to.keys, g.storage_type, target), dim);
      widen(element_at(n.values, n.input_type, session * value_stride + key_head * dim), row, dim);
      narrow(row, element_at(to.values, g.storage_type, target), dim);
    }
  });
}

}  // namespace skv::cpu
