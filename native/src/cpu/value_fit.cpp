#include <algorithm>

#include "coefficient_columns.h"
#include "cpu/attention_kernels.h"
#include "cpu/basis.h"
#include "cpu/elements.h"

namespace skv::cpu {
namespace {

// How the tokens are cut, by their number alone. Sums are added up in three levels, tokens, blocks, pieces, none of
// them long: their rounding errors stay near those of a tree.
constexpr std::int64_t kPieces = 16;
constexpr std::int64_t kBlockTokens = kProductsAtOnce;
static_assert(SKV_MAX_RANK <= SKV_MAX_HEAD_DIM);

// Of the largest column's sum of squares: what is not above it is rounding. Columns of I8 are as long as one another,
// whatever they stand for: those that are rounding were made zero.
float negligible(std::int32_t coefficient_type) {
  return coefficient_type == SKV_I8 ? 0.0F : rounding_share(coefficient_type);
}

// Rows as the kernels want them; squares of the coefficients lie behind the products.
struct Layout {
  explicit Layout(const skv_value_fit_params& p)
      : rank_width(padded_dim(p.rank)), width(padded_dim(p.head_dim)), products(rank_width * width) {
    const std::int64_t blocks = (p.tokens + kBlockTokens - 1) / kBlockTokens;
    piece_tokens = std::max<std::int64_t>(1, (blocks + kPieces - 1) / kPieces) * kBlockTokens;
    pieces = (p.tokens + piece_tokens - 1) / piece_tokens;
  }
  std::int64_t block_floats() const { return kBlockTokens * (rank_width + width); }
  std::int64_t rank_width, width, products;
  std::int64_t piece_tokens, pieces;
};

// Squares of `count` rows, summed over them.
void add_squares(const float* rows, std::int64_t count, std::int64_t width, float* sums) {
  float block[SKV_MAX_RANK] = {};
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t j = 0; j < width; ++j) {
      block[j] += rows[t * width + j] * rows[t * width + j];
    }
  }
  for (std::int64_t j = 0; j < width; ++j) {
    sums[j] += block[j];
  }
}

// The factor of each row of the basis: one over its column's sum of squares, or 0 of a column that is rounding alone.
void row_factors(const float* squares, const Layout& layout, float share, float* factors) {
  std::fill_n(factors, layout.rank_width, 0.0F);
  for (std::int64_t piece = 0; piece < layout.pieces; ++piece) {
    for (std::int64_t j = 0; j < layout.rank_width; ++j) {
      factors[j] += squares[piece * layout.rank_width + j];
    }
  }
  const float least = *std::max_element(factors, factors + layout.rank_width) * share;
  for (std::int64_t j = 0; j < layout.rank_width; ++j) {
    // So that a column of NaN gives a row of NaN.
    factors[j] = factors[j] <= least ? 0.0F : 1.0F / factors[j];
  }
}

}  // namespace

std::uint64_t value_fit_workspace(const skv_value_fit_params& p, const ExecutionTraits& traits) {
  const Layout layout(p);
  return Workspace::bytes_of<float>(static_cast<std::uint64_t>(p.key_value_heads * layout.pieces * layout.products)) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>((layout.pieces + 1) * layout.rank_width)) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(traits.threads * layout.block_floats()));
}

// coefficients [..][r], values [K][capacity][D] -> value_basis [K][r][D]. Floor: 2 * K * r * D operations a token;
// values through memory once, coefficients once a head. Bound by the multipliers. The order of the sums depends on the
// number of tokens alone.
void value_fit(const skv_value_fit_params& p, Execution& execution) {
  execution.workspace.require(value_fit_workspace(p, execution.traits()), "skv_value_fit");
  const AttentionKernels& kernels = attention_kernels(execution.set);
  const Widen widen = widen_function(p.storage_type, execution.set);
  const Widen widen_coefficients = widen_function(p.coefficient_type, execution.set);
  const Narrow narrow = narrow_function(p.storage_type, execution.set);
  const Layout layout(p);
  float* const products =
      execution.workspace.take<float>(static_cast<std::uint64_t>(p.key_value_heads * layout.pieces * layout.products));
  float* const squares =
      execution.workspace.take<float>(static_cast<std::uint64_t>((layout.pieces + 1) * layout.rank_width));
  float* const factors = squares + layout.pieces * layout.rank_width;
  float* const blocks =
      execution.workspace.take<float>(static_cast<std::uint64_t>(execution.pool.threads() * layout.block_floats()));
  execution.pool.parallel_for(p.key_value_heads * layout.pieces, [&](std::int64_t unit, int thread) {
    const std::int64_t head = unit / layout.pieces, piece = unit % layout.pieces;
    const std::int64_t first = piece * layout.piece_tokens, end = std::min(first + layout.piece_tokens, p.tokens);
    float* const sums = products + unit * layout.products;
    float* const coefficients = blocks + thread * layout.block_floats();
    float* const values = coefficients + kBlockTokens * layout.rank_width;
    std::fill_n(sums, layout.products, 0.0F);
    std::fill_n(coefficients, layout.block_floats(), 0.0F);  // also behind the elements of a row
    if (head == 0) {
      std::fill_n(squares + piece * layout.rank_width, layout.rank_width, 0.0F);
    }
    for (std::int64_t block = first; block < end; block += kBlockTokens) {
      const std::int64_t count = std::min(kBlockTokens, end - block);
      for (std::int64_t t = 0; t < count; ++t) {
        const std::int64_t position = p.first_position + block + t;
        widen_coefficients(element_at(p.coefficients, p.coefficient_type, position * p.rank),
                           coefficients + t * layout.rank_width, p.rank);
        widen(element_at(p.values, p.storage_type, (head * p.capacity + position % p.capacity) * p.head_dim),
              values + t * layout.width, p.head_dim);
      }
      kernels.add_products(coefficients, p.rank, values, p.head_dim, count, sums);
      if (head == 0) {
        add_squares(coefficients, count, layout.rank_width, squares + piece * layout.rank_width);
      }
    }
  });
  row_factors(squares, layout, negligible(p.coefficient_type), factors);
  for (int j = 0; p.coefficient_type == SKV_I8 && j < p.rank; ++j) {
    factors[j] = is_refinement(j, p.rank) ? 0.0F : factors[j];  // the values it stands for are its direction's
  }
  execution.pool.parallel_for(static_cast<std::int64_t>(p.key_value_heads) * p.rank, [&](std::int64_t i) {
    const std::int64_t head = i / p.rank, j = i % p.rank;
    float row[SKV_MAX_HEAD_DIM] = {};
    for (std::int64_t piece = 0; piece < layout.pieces && factors[j] != 0; ++piece) {
      const float* const from = products + (head * layout.pieces + piece) * layout.products + j * layout.width;
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        row[d] += from[d];
      }
    }
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      row[d] *= factors[j];
    }
    narrow(row, element_at(p.value_basis, p.storage_type, i * p.head_dim), p.head_dim);
  });
}

}  // namespace skv::cpu
