#include <algorithm>

#include "cpu/attention_kernels.h"
#include "cpu/elements.h"
#include "moments.h"

namespace skv::cpu {
namespace {

// How the tokens of a head are cut, by their number alone. Sums are added up in three levels, tokens, blocks, pieces,
// none of them long: their rounding errors stay near those of a tree.
constexpr std::int64_t kPieces = 16;
constexpr std::int64_t kBlockTokens = kProductsAtOnce;

struct Cut {
  std::int64_t pieces, piece_chunks;
};

Cut cut_of(const skv_moment_update_params& p) {
  const std::int64_t least = kBlockTokens / p.chunk;
  const std::int64_t chunks = std::max(least, (p.chunks + kPieces - 1) / kPieces);
  return {(p.chunks + chunks - 1) / chunks, chunks};
}

// Sums of a piece, rows as the kernels want them: products [width][width], keys [width], values [width], tokens.
struct Sums {
  explicit Sums(std::int64_t dim) : width(padded_dim(dim)) {}
  std::int64_t keys() const { return width * width; }
  std::int64_t values() const { return keys() + width; }
  std::int64_t count() const { return values() + width; }
  std::int64_t floats() const { return count() + kScoreMultiple; }
  std::int64_t width;
};

void add_rows(const float* rows, std::int64_t count, std::int64_t width, float* sums) {
  float block[SKV_MAX_HEAD_DIM] = {};
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t d = 0; d < width; ++d) {
      block[d] += rows[t * width + d];
    }
  }
  for (std::int64_t d = 0; d < width; ++d) {
    sums[d] += block[d];
  }
}

// Tokens of one block, widened; the next ones are added when it is full.
class Block {
 public:
  Block(const skv_moment_update_params& p, const AttentionKernels& kernels, Widen widen, float* memory, float* sums)
      : p_(p),
        kernels_(kernels),
        widen_(widen),
        layout_(p.head_dim),
        keys_(memory),
        values_(memory + kBlockTokens * layout_.width),
        sums_(sums) {
    std::fill_n(sums, layout_.floats(), 0.0F);
    std::fill_n(memory, floats(p.head_dim), 0.0F);  // also behind the elements of a row
  }
  static std::int64_t floats(std::int64_t dim) { return 2 * kBlockTokens * padded_dim(dim); }

  void add_chunk(std::int64_t head, std::int64_t chunk) {
    for (std::int64_t t = 0; t < p_.chunk; ++t, ++tokens_) {
      const std::int64_t row = head * p_.capacity + (chunk * p_.chunk + t) % p_.capacity;
      widen_(element_at(p_.rotated_keys, p_.storage_type, row * p_.head_dim), keys_ + tokens_ * layout_.width,
             p_.head_dim);
      widen_(element_at(p_.values, p_.storage_type, row * p_.head_dim), values_ + tokens_ * layout_.width, p_.head_dim);
    }
    if (tokens_ == kBlockTokens) {
      flush();
    }
  }
  void flush() {
    kernels_.add_products(values_, p_.head_dim, keys_, p_.head_dim, tokens_, sums_);
    add_rows(keys_, tokens_, layout_.width, sums_ + layout_.keys());
    add_rows(values_, tokens_, layout_.width, sums_ + layout_.values());
    sums_[layout_.count()] += static_cast<float>(tokens_);
    tokens_ = 0;
  }

 private:
  const skv_moment_update_params& p_;
  const AttentionKernels& kernels_;
  const Widen widen_;
  const Sums layout_;
  float *keys_, *values_;  // [kBlockTokens][width]
  float* const sums_;
  std::int64_t tokens_ = 0;
};

// Adds the pieces of `count` sums at `from`, then adds them to what is there or takes them away.
void settle(const skv_moment_update_params& p, const float* pieces, std::int64_t number, std::int64_t from,
            std::int64_t count, float* to) {
  const std::int64_t floats = Sums(p.head_dim).floats();
  for (std::int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (std::int64_t piece = 0; piece < number; ++piece) {
      sum += pieces[piece * floats + from + i];
    }
    to[i] = (p.replace != 0 ? 0.0F : to[i]) + (p.subtract != 0 ? -sum : sum);
  }
}

}  // namespace

std::uint64_t moment_update_workspace(const skv_moment_update_params& p, const ExecutionTraits& traits) {
  return Workspace::bytes_of<float>(
             static_cast<std::uint64_t>(p.key_value_heads * cut_of(p).pieces * Sums(p.head_dim).floats())) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(traits.threads * Block::floats(p.head_dim)));
}

// rotated_keys and values [K][capacity][D] -> moments [K][D*D + 2*D + 4]. Floor: 2 * K * D * D operations a token; keys
// and values through memory once. Bound by the multipliers. The order of the sums depends on the number of chunks
// alone.
void moment_update(const skv_moment_update_params& p, Execution& execution) {
  execution.workspace.require(moment_update_workspace(p, execution.traits()), "skv_moment_update");
  const AttentionKernels& kernels = attention_kernels(execution.set);
  const Widen widen = widen_function(p.storage_type, execution.set);
  const Cut cut = cut_of(p);
  const Sums layout(p.head_dim);
  float* const sums =
      execution.workspace.take<float>(static_cast<std::uint64_t>(p.key_value_heads * cut.pieces * layout.floats()));
  float* const memory =
      execution.workspace.take<float>(static_cast<std::uint64_t>(execution.pool.threads() * Block::floats(p.head_dim)));
  execution.pool.parallel_for(p.key_value_heads * cut.pieces, [&](std::int64_t unit, int thread) {
    const std::int64_t head = unit / cut.pieces, first = p.first_chunk + unit % cut.pieces * cut.piece_chunks;
    const std::int64_t end = std::min(first + cut.piece_chunks, p.first_chunk + p.chunks);
    Block block(p, kernels, widen, memory + thread * Block::floats(p.head_dim), sums + unit * layout.floats());
    for (std::int64_t chunk = first; chunk < end; ++chunk) {
      if (p.radius == nullptr || !(p.radius[head * p.chunk_capacity + chunk] < 0)) {
        block.add_chunk(head, chunk);
      }
    }
    block.flush();
  });
  const std::int64_t dim = p.head_dim;
  const MomentLayout to(dim);
  execution.pool.parallel_for(p.key_value_heads * (dim + 1), [&](std::int64_t i) {
    const std::int64_t head = i / (dim + 1), row = i % (dim + 1);
    const float* const pieces = sums + head * cut.pieces * layout.floats();
    float* const moments = p.moments + head * to.floats;
    if (row < dim) {
      settle(p, pieces, cut.pieces, row * layout.width, dim, moments + row * dim);
      return;
    }
    settle(p, pieces, cut.pieces, layout.keys(), dim, moments + to.keys);
    settle(p, pieces, cut.pieces, layout.values(), dim, moments + to.values);
    settle(p, pieces, cut.pieces, layout.count(), 1, moments + to.count);
    if (p.replace != 0) {
      std::fill(moments + to.count + 1, moments + to.floats, 0.0F);
    }
  });
}

}  // namespace skv::cpu
