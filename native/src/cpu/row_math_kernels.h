// The kernels of row_math.h, included by one file an instruction set. All in an unnamed namespace: the same names mean
// other code in every such file.
#pragma once

#include <limits>

#include "cpu/row_math.h"
#include "cpu/vector.h"
#include "random.h"

namespace skv::cpu {
namespace {

typedef std::uint32_t WordVector __attribute__((vector_size(kVectorBytes)));

// Whole vectors, then what is left of one: work(offset, load of `from + offset`).
template <class Work>
inline void over_vectors(std::int64_t count, Work&& work) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    work(i, kLanes);
  }
  if (i < count) {
    work(i, static_cast<int>(count - i));
  }
}

inline Vector load_up_to(const float* p, int count) {
  return count == kLanes ? load(p) : load_first(p, count);
}

inline void store_up_to(float* p, Vector x, int count) {
  if (count == kLanes) {
    store(p, x);
  } else {
    std::memcpy(p, &x, static_cast<std::size_t>(count) * sizeof(float));
  }
}

// Some forty instructions a vector for three of memory traffic.
void silu_multiply_row(const float* gate, const float* up, std::int64_t count, float* to) {
  over_vectors(count, [&](std::int64_t i, int here) {
    const Vector x = load_up_to(gate + i, here);
    // Of the magnitude: e^-|x| is at most 1, whatever x is.
    const Vector decay = exponential(x < 0 ? x : -x);
    const Vector sigmoid = (x < 0 ? decay : Vector{} + 1.0F) / (decay + 1.0F);
    store_up_to(to + i, x * sigmoid * load_up_to(up + i, here), here);
  });
}

void scale_multiply_row(const float* from, float scale, const float* weight, std::int64_t count, float* to) {
  over_vectors(count, [&](std::int64_t i, int here) {
    store_up_to(to + i, load_up_to(from + i, here) * scale * load_up_to(weight + i, here), here);
  });
}

// --- Random numbers ---------------------------------------------------------------------------

struct WideProduct {
  WordVector low, high;
};

inline WideProduct multiply_words(WordVector x, std::uint32_t factor) {
#if defined(__AVX512F__)
  const __m512i a = reinterpret_cast<__m512i>(x), f = _mm512_set1_epi32(static_cast<int>(factor));
  const __m512i even = _mm512_mul_epu32(a, f), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), f);
  constexpr __mmask16 kOdd = 0xaaaa;
  return {reinterpret_cast<WordVector>(_mm512_mask_shuffle_epi32(even, kOdd, odd, _MM_PERM_CCAA)),
          reinterpret_cast<WordVector>(_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), kOdd, odd))};
#elif defined(__AVX2__)
  const __m256i a = reinterpret_cast<__m256i>(x), f = _mm256_set1_epi32(static_cast<int>(factor));
  const __m256i even = _mm256_mul_epu32(a, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), f);
  constexpr int kOdd = 0xaa;
  return {reinterpret_cast<WordVector>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), kOdd)),
          reinterpret_cast<WordVector>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, kOdd))};
#else
  WideProduct product;
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::uint64_t whole = static_cast<std::uint64_t>(x[lane]) * factor;
    product.low[lane] = static_cast<std::uint32_t>(whole);
    product.high[lane] = static_cast<std::uint32_t>(whole >> 32);
  }
  return product;
#endif
}

// As philox() of random.h, for kLanes counters that differ in their low word alone.
inline void philox_lanes(WordVector low, std::uint32_t high, std::uint64_t seed, WordVector (&words)[4]) {
  constexpr std::uint32_t kMultiplier0 = 0xD2511F53U, kMultiplier1 = 0xCD9E8D57U;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9U, kWeyl1 = 0xBB67AE85U;
  WordVector x0 = low, x1 = WordVector{} + high, x2 = {}, x3 = {};
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const WideProduct first = multiply_words(x0, kMultiplier0), second = multiply_words(x2, kMultiplier1);
    x0 = second.high ^ x1 ^ key0;
    x2 = first.high ^ x3 ^ key1;
    x1 = second.low;
    x3 = first.low;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  words[0] = x0;
  words[1] = x1;
  words[2] = x2;
  words[3] = x3;
}

inline Vector to_float(WordVector x) {
  return __builtin_convertvector(reinterpret_cast<IntVector>(x), Vector);  // less than 2^24
}

// Natural logarithm of a normal number in (0, 1]: of 2^e m with m in [sqrt(1/2), sqrt(2)), e ln 2 and twice the area
// tangent of s = (m - 1) / (m + 1), |s| < 0.172, whose series is exact to 2^-31 after five terms.
inline Vector logarithm(Vector x) {
  constexpr float kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  constexpr std::int32_t kHalfRoot = 0x3f3504f3;  // sqrt(1/2)
  const IntVector bits = reinterpret_cast<IntVector>(x);
  const IntVector exponent = (bits - kHalfRoot) >> 23;
  const Vector m = reinterpret_cast<Vector>(bits - (exponent << 23));
  const Vector e = __builtin_convertvector(exponent, Vector);
  const Vector s = (m - 1.0F) / (m + 1.0F), z = s * s;
  Vector series = z * (1.0F / 9.0F) + (1.0F / 7.0F);
  series = series * z + (1.0F / 5.0F);
  series = series * z + (1.0F / 3.0F);
  const Vector rest = series * z * s;
  return (e * kLn2Low + 2.0F * rest) + 2.0F * s + e * kLn2High;
}

inline Vector square_root(Vector x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    x[lane] = std::sqrt(x[lane]);
  }
  return x;
#endif
}

struct Circle {
  Vector cosine, sine;
};

// Cosine and sine of turn / 2^24 turns: the eighth that is left of the nearest quarter by the Taylor series, exact to
// 2^-28, then the quarters.
inline Circle on_circle(WordVector turn) {
  constexpr std::uint32_t kQuarter = 1U << 22;
  const WordVector quarters = (turn + kQuarter / 2) >> 22;
  const IntVector left = reinterpret_cast<IntVector>(turn - (quarters << 22));
  const Vector angle = __builtin_convertvector(left, Vector) * (0x1p-24F * 6.283185307179586F);
  const Vector z = angle * angle;
  Vector sine = z * (1.0F / 362880.0F) + (-1.0F / 5040.0F);
  sine = sine * z + (1.0F / 120.0F);
  sine = sine * z + (-1.0F / 6.0F);
  sine = sine * z * angle + angle;
  Vector cosine = z * (-1.0F / 3628800.0F) + (1.0F / 40320.0F);
  cosine = cosine * z + (-1.0F / 720.0F);
  cosine = cosine * z + (1.0F / 24.0F);
  cosine = cosine * z + -0.5F;
  cosine = cosine * z + 1.0F;
  const IntVector quarter = reinterpret_cast<IntVector>(quarters);
  const auto swapped = (quarter & 1) != 0;
  const IntVector sine_sign = (quarter & 2) << 30, cosine_sign = ((quarter + 1) & 2) << 30;
  const auto signed_by = [](Vector x, IntVector sign) {
    return reinterpret_cast<Vector>(reinterpret_cast<IntVector>(x) ^ sign);
  };
  return {signed_by(swapped ? sine : cosine, cosine_sign), signed_by(swapped ? cosine : sine, sine_sign)};
}

// Of four words each: 20 multiplications of words, two logarithms, roots, cosines and sines.
void normal_numbers(std::uint64_t first, std::uint64_t seed, float mean, float deviation, std::int64_t counters,
                    float* to) {
  WordVector lane = {};
  for (int i = 0; i < kLanes; ++i) {
    lane[i] = static_cast<std::uint32_t>(i);
  }
  std::int64_t done = 0;
  while (done < counters) {
    const std::uint64_t counter = first + static_cast<std::uint64_t>(done);
    const bool carries = static_cast<std::uint32_t>(counter) > 0xffffffffU - kLanes;
    if (done + kLanes > counters || carries) {
      const RandomNormals normals = random_normals(counter, seed);
      for (int j = 0; j < 4; ++j) {
        to[4 * done + j] = mean + deviation * normals.at[j];
      }
      ++done;
      continue;
    }
    WordVector words[4];
    philox_lanes(lane + static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), seed, words);
    alignas(kVectorBytes) float numbers[4][kLanes];
    for (int pair = 0; pair < 2; ++pair) {
      const Vector u = (to_float(words[2 * pair] >> 8) + 1.0F) * 0x1p-24F;
      const Vector length = square_root(logarithm(u) * -2.0F) * deviation;
      const Circle circle = on_circle(words[2 * pair + 1] >> 8);
      store(numbers[2 * pair], mean + length * circle.cosine);
      store(numbers[2 * pair + 1], mean + length * circle.sine);
    }
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < 4; ++j) {
        to[4 * (done + i) + j] = numbers[j][i];
      }
    }
    done += kLanes;
  }
}

// --- Looking for the largest ------------------------------------------------------------------

float largest_element(const float* row, std::int64_t count) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  constexpr int kSums = 4;
  Vector most[kSums], sum[kSums] = {};
  for (Vector& x : most) {
    x = broadcast(kNothing);
  }
  std::int64_t i = 0;
  // NaN is not larger than anything, but shows in x - x, as infinity does: which of them it was is looked at then.
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
    for (int s = 0; s < kSums; ++s) {
      const Vector x = load(row + i + s * kLanes);
      most[s] = largest(x, most[s]);
      sum[s] += x - x;
    }
  }
  float best = largest_of(largest(largest(most[0], most[1]), largest(most[2], most[3])));
  float odd = sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < count; ++i) {
    best = row[i] > best ? row[i] : best;
    odd += row[i] - row[i];
  }
  if (odd != 0) {
    for (std::int64_t k = 0; k < count; ++k) {
      if (row[k] != row[k]) {
        return row[k];
      }
    }
  }
  return best;
}

std::int64_t find_element(const float* row, std::int64_t count, float value) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (row[i] == value) {
      return i;
    }
  }
  return count;
}

// --- Chunks of keys ---------------------------------------------------------------------------

void mean_row(const float* rows, std::int64_t count, std::int64_t dim, float* mean) {
  const float share = 1.0F / static_cast<float>(count);
  over_vectors(dim, [&](std::int64_t d, int here) {
    Vector sum = {};
    for (std::int64_t t = 0; t < count; ++t) {
      sum += load_up_to(rows + t * dim + d, here);
    }
    store_up_to(mean + d, sum * share, here);
  });
}

void row_dots(const float* rows, std::int64_t count, std::int64_t dim, const float* other, float* product,
              float* squares) {
  constexpr std::int64_t kRows = 2;
  for (std::int64_t t = 0; t < count; t += kRows) {
    // The last row twice where their number is odd.
    const float* const row[kRows] = {rows + t * dim, rows + std::min(t + 1, count - 1) * dim};
    Vector with_other[kRows] = {}, with_itself[kRows] = {};
    over_vectors(dim, [&](std::int64_t d, int here) {
      const Vector y = load_up_to(other + d, here);
      for (std::int64_t i = 0; i < kRows; ++i) {
        const Vector x = load_up_to(row[i] + d, here);
        with_itself[i] += x * x;
        with_other[i] += x * y;
      }
    });
    const Sums sums = sums_of(with_other[0], with_itself[0], with_other[1], with_itself[1]);
    for (std::int64_t i = 0; i < std::min(kRows, count - t); ++i) {
      product[t + i] = sums.at[2 * i];
      squares[t + i] = sums.at[2 * i + 1];
    }
  }
}

float farthest_row(const float* rows, std::int64_t count, std::int64_t dim, const float* point) {
  constexpr std::int64_t kRows = 4;
  float farthest = 0;
  for (std::int64_t t = 0; t < count; t += kRows) {
    Vector sum[kRows] = {};
    over_vectors(dim, [&](std::int64_t d, int here) {
      const Vector at = load_up_to(point + d, here);
      for (std::int64_t i = 0; i < kRows; ++i) {
        const Vector away = load_up_to(rows + std::min(t + i, count - 1) * dim + d, here) - at;
        sum[i] += away * away;
      }
    });
    for (const float distance : sums_of(sum[0], sum[1], sum[2], sum[3]).at) {
      farthest = farthest != farthest || distance <= farthest ? farthest : distance;  // a NaN stays
    }
  }
  return farthest;
}

constexpr RowMath row_math_here() {
  return {silu_multiply_row, normal_numbers, scale_multiply_row, largest_element,
          find_element,      mean_row,       row_dots,           farthest_row};
}

}  // namespace
}  // namespace skv::cpu
