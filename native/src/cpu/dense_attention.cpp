#include <algorithm>
#include <string>

#include "cpu/attention.h"
#include "cpu/elements.h"

namespace skv::cpu {
namespace {

// A long session is cut into larger parts: in parts of 1024 tokens it takes 1 to 4 % more time, and there are enough
// larger ones for many threads. How a session is cut depends on its own length alone.
constexpr std::int64_t kLongSession = 65536;
std::int64_t part_tokens(std::int64_t length) {
  return length < kLongSession ? 1024 : 4096;
}

// Of the session of at most `length` tokens that has the most.
std::int64_t most_parts(std::int64_t length) {
  return std::max(divide_up(std::min(length, kLongSession - 1), part_tokens(0)),
                  divide_up(length, part_tokens(kLongSession)));
}

}  // namespace

std::uint64_t dense_attention_workspace(const skv_dense_attention_params& p, const ExecutionTraits&) {
  const skv_geometry& g = p.geometry;
  return prepared_query_bytes(g, p.batch) +
         AttentionParts::bytes(head_pairs(g, p.batch), most_parts(p.max_length), group_size(g), g.head_dim);
}

// Exact decode attention, keys and values [K][capacity][D] a session, queries [B][H][D].
//
// Every key and value is read once: B * K * length * D * 2 elements, which bounds it from a few thousand tokens on, as
// long as the G dot products and G sums of a row keep pace: 2 * G * D multiply-adds for 4 * D bytes of bf16.
// Queries of a group share each loaded row. Zen 4 with bf16 products: 76 cycles a token and key/value head of four
// queries out of the second cache (64 at least: 2 parts * 2 * G * D / 32 products), 25 GB/s a core. Zen 5, two products
// a cycle: 14 ns (10 at least).
void dense_attention(const skv_dense_attention_params& p, Execution& execution) {
  const skv_geometry& g = p.geometry;
  check_attention_geometry(g, p.query_type, "dense_attention");
  check_attention_geometry(g, p.output_type, "dense_attention");
  execution.workspace.require(dense_attention_workspace(p, execution.traits()), "dense_attention");
  for (std::int32_t b = 0; b < p.batch; ++b) {
    if (p.states[b].length > p.max_length || p.states[b].length > p.layers[b].capacity) {
      throw Error(SKV_INVALID_ARGUMENT, "dense_attention: session " + std::to_string(b) + " has " +
                                            std::to_string(p.states[b].length) + " tokens, max_length is " +
                                            std::to_string(p.max_length) + " and its capacity " +
                                            std::to_string(p.layers[b].capacity));
    }
  }
  Workspace& workspace = execution.workspace;
  const std::int32_t group = group_size(g), dim = g.head_dim;
  const std::int64_t heads = g.key_value_heads, pairs = head_pairs(g, p.batch);
  const std::int64_t parts = most_parts(p.max_length);
  const float* const queries = prepare_queries(g, p.batch, p.query_type, p.queries, execution);
  const AttentionParts sums(pairs, parts, group, dim, workspace);
  const AttentionKernels& kernels = attention_kernels(execution.set);

  // What a part asks for ahead of its end is then the beginning of the thread's next.
  constexpr std::int64_t kInARow = 8;
  execution.pool.parallel_neighbours(pairs * parts, kInARow, [&](std::int64_t unit) {
    const std::int64_t pair = unit / parts, part = unit % parts, head = pair % heads;
    const skv_dense_layer& layer = p.layers[pair / heads];
    const std::int64_t length = p.states[pair / heads].length, tokens = part_tokens(length), first = part * tokens;
    const std::int64_t left = length - first;
    if (left <= 0) {
      return;
    }
    const std::int64_t at = (head * layer.capacity + first) * dim;
    kernels.rows[g.storage_type].attend(queries + pair * group * padded_dim(dim), group,
                                        element_at(static_cast<const void*>(layer.keys), g.storage_type, at),
                                        element_at(static_cast<const void*>(layer.values), g.storage_type, at),
                                        std::min(left, tokens), dim, sums.begin(pair, part), sums.sums(pair, part));
  });
  execution.pool.parallel_for(pairs, [&](std::int64_t pair) {
    const std::int64_t length = p.states[pair / heads].length;
    sums.combine(pair, divide_up(length, part_tokens(length)), p.output_type,
                 element_at(p.output, p.output_type, pair * group * dim),
                 p.log_sum_exp == nullptr ? nullptr : p.log_sum_exp + pair * group, execution.traits());
  });
}

}  // namespace skv::cpu
