// Conversions among element types, against arithmetic in double precision: every 16-bit and 8-bit pattern,
// every tie between neighbours, and random floats; then whole rows for every instruction set.
#include "cpu/elements.h"

#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "packed_values.h"
#include "value_types.h"

namespace {

using skv::cpu::BFloat16;
using skv::cpu::Float16;
using skv::cpu::Float8;
using skv::cpu::InstructionSet;
using skv::cpu::to_float;

struct Format {
  int exponent_bits, fraction_bits;
  bool has_infinity;
};
constexpr Format kBFloat16{8, 7, true}, kFloat16{5, 10, true}, kFloat8{4, 3, false};

int bias(const Format& f) {
  return (1 << (f.exponent_bits - 1)) - 1;
}

// What a bit pattern means, by the definition of the format.
double meaning(const Format& f, unsigned bits) {
  const unsigned fraction = bits & ((1U << f.fraction_bits) - 1);
  const unsigned exponent = (bits >> f.fraction_bits) & ((1U << f.exponent_bits) - 1);
  const double sign = (bits >> (f.fraction_bits + f.exponent_bits)) != 0 ? -1 : 1;
  const unsigned top = (1U << f.exponent_bits) - 1;
  if (exponent == top && f.has_infinity) {
    return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  if (!f.has_infinity && exponent == top && fraction == (1U << f.fraction_bits) - 1) {
    return std::nan("");
  }
  const double significand = (exponent != 0 ? 1.0 : 0.0) + fraction / std::ldexp(1.0, f.fraction_bits);
  return sign * std::ldexp(significand, static_cast<int>(exponent != 0 ? exponent : 1) - bias(f));
}

// The nearest value of the format, ties to the even fraction; beyond the largest: infinity, or the largest.
double nearest(const Format& f, double x) {
  if (std::isnan(x) || x == 0) {
    return x;
  }
  const double largest = f.has_infinity ? std::ldexp(2.0 - std::ldexp(1.0, -f.fraction_bits), bias(f)) : 448.0;
  if (std::isinf(x)) {
    return f.has_infinity ? x : std::copysign(largest, x);
  }
  const int exponent = std::max(std::ilogb(x), 1 - bias(f));
  const double unit = std::ldexp(1.0, exponent - f.fraction_bits);
  const double rounded = std::nearbyint(x / unit) * unit;
  if (std::fabs(rounded) > largest) {
    return std::copysign(f.has_infinity ? std::numeric_limits<double>::infinity() : largest, x);
  }
  return rounded;
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

template <class T, class Bits>
void test_format(const char* name, const Format& f, std::mt19937_64& random) {
  const unsigned patterns = 1U << (1 + f.exponent_bits + f.fraction_bits);
  int wrong = 0;
  const auto narrow = [&](float x) {
    const T narrowed = skv::cpu::from_float<T>(x);
    wrong += !same(meaning(f, narrowed.bits), nearest(f, x));
  };
  for (unsigned bits = 0; bits < patterns; ++bits) {
    const double value = meaning(f, bits);
    wrong += !same(skv::cpu::to_float(T{static_cast<Bits>(bits)}), value);
    const float here = static_cast<float>(value);
    narrow(here);
    // The tie towards the next pattern and its neighbours.
    const double next = meaning(f, bits + 1 < patterns ? bits + 1 : bits);
    if (std::isfinite(value) && std::isfinite(next)) {
      const float middle = static_cast<float>((value + next) / 2);
      narrow(middle);
      narrow(std::nextafterf(middle, 1e38F));
      narrow(std::nextafterf(middle, -1e38F));
    }
  }
  for (int i = 0; i < 2'000'000; ++i) {
    narrow(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  }
  if (!CHECK_EQUAL(wrong, 0)) {
    std::fprintf(stderr, "%s: %d conversions wrong\n", name, wrong);
  }
}

template <class T>
void test_rows(std::int32_t type, InstructionSet set, std::mt19937_64& random) {
  for (const std::int64_t count : {0, 1, 7, 8, 15, 16, 17, 33, 1000}) {
    std::vector<float> from(static_cast<std::size_t>(count)), back(from.size() + 1, -77.0F);
    std::vector<T> expected(from.size()), narrowed(from.size() + 1);
    std::memset(narrowed.data(), 0x3c, narrowed.size() * sizeof(T));
    const T guard = narrowed.back();
    for (std::size_t i = 0; i < from.size(); ++i) {
      from[i] = i % 3 == 0 ? std::bit_cast<float>(static_cast<std::uint32_t>(random()))
                           : static_cast<float>(std::normal_distribution<double>(0, 30)(random));
      expected[i] = skv::cpu::from_float<T>(from[i]);
    }
    skv::cpu::narrow_function(type, set)(from.data(), narrowed.data(), count);
    skv::cpu::widen_function(type, set)(narrowed.data(), back.data(), count);
    bool right = std::memcmp(&narrowed.back(), &guard, sizeof(T)) == 0 && back.back() == -77.0F;
    for (std::size_t i = 0; i < from.size(); ++i) {
      // The bits of a NaN may differ between the processor's conversion and ours.
      right &= same(skv::cpu::to_float(narrowed[i]), skv::cpu::to_float(expected[i]));
      right &= same(back[i], skv::cpu::to_float(expected[i]));
    }
    CHECK(right);
  }
}

// Chunks of every code, in random order: what slots get, to the bit, and the same codes packed again.
void test_packed(std::int32_t type, InstructionSet set, std::mt19937_64& random) {
  const check::PackedFormat format = check::packed_format(type);
  const bool twelve = type == SKV_F12_E4M7;
  for (const std::int64_t elements : {16, 48, 512, 560, 768, 1024, 4096}) {
    for (int round = 0; round < 8; ++round) {
      const auto bytes = static_cast<std::size_t>(skv::value_bytes(type, elements));
      constexpr unsigned char kGuard = 0xa5;
      std::vector<unsigned char> chunk(bytes), again(bytes + 1, kGuard);
      std::vector<std::uint16_t> slot(static_cast<std::size_t>(elements) + 1, 0xa5a5);
      std::vector<float> numbers(static_cast<std::size_t>(elements));
      for (std::int64_t i = 0; i < elements; ++i) {
        const auto any = static_cast<unsigned>(round == 0 ? i : static_cast<std::int64_t>(random() >> 32));
        const unsigned code = any % (1U << format.bits());
        check::put_packed(type, chunk.data(), elements, i, code);
        numbers[static_cast<std::size_t>(i)] = static_cast<float>(format.number(code));
      }
      // Scales from the smallest to the largest that a chunk of BF16 can have.
      const float scale = std::ldexp(1.0F, static_cast<int>(random() % 240) - 120);
      skv::cpu::unpack_function(type, set)(chunk.data(), scale, slot.data(), elements);
      skv::cpu::pack_function(type, set)(numbers.data(), again.data(), elements);
      bool right = again.back() == kGuard && std::equal(chunk.begin(), chunk.end(), again.begin());
      const auto* const slot_bytes = reinterpret_cast<const std::uint8_t*>(slot.data());
      for (std::int64_t i = 0; i < elements; ++i) {
        const float number = numbers[static_cast<std::size_t>(i)];
        right &= twelve
                     ? same(to_float(BFloat16{slot[static_cast<std::size_t>(i)]}), static_cast<double>(number) * scale)
                     : same(to_float(Float8{slot_bytes[i]}), number);
      }
      right &= twelve ? slot.back() == 0xa5a5 : slot_bytes[elements] == kGuard;
      CHECK(right);
    }
  }
}

// Between two codes, at their middle and beside it, and beyond the last.
void test_packing(std::int32_t type, InstructionSet set) {
  const check::PackedFormat format = check::packed_format(type);
  constexpr std::int64_t kElements = 16;
  std::vector<float> numbers;
  for (unsigned code = 0; code + 1 < 1U << (format.bits() - 1); ++code) {
    const auto middle = static_cast<float>((format.number(code) + format.number(code + 1)) / 2);
    for (const float x : {middle, std::nextafterf(middle, 1e38F), std::nextafterf(middle, -1e38F)}) {
      numbers.push_back(x);
      numbers.push_back(-x);
    }
  }
  numbers.push_back(static_cast<float>(format.largest()) * 1.5F);
  numbers.resize((numbers.size() + kElements - 1) / kElements * kElements, 0.0F);
  bool right = true;
  for (std::size_t first = 0; first < numbers.size(); first += kElements) {
    unsigned char chunk[2 * kElements];
    skv::cpu::pack_function(type, set)(&numbers[first], chunk, kElements);
    for (std::int64_t i = 0; i < kElements; ++i) {
      right &=
          check::packed_code(type, chunk, kElements, i) == format.code(numbers[first + static_cast<std::size_t>(i)]);
    }
  }
  CHECK(right);
}

}  // namespace

int main() {
  std::mt19937_64 random = check::fresh_generator();
  test_format<BFloat16, std::uint16_t>("bf16", kBFloat16, random);
  test_format<Float16, std::uint16_t>("f16", kFloat16, random);
  test_format<Float8, std::uint8_t>("e4m3", kFloat8, random);
  const int best = static_cast<int>(skv::cpu::best_instruction_set());
  for (int set = 1; set <= best; ++set) {
    const auto chosen = static_cast<InstructionSet>(set);
    test_rows<float>(SKV_F32, chosen, random);
    test_rows<BFloat16>(SKV_BF16, chosen, random);
    test_rows<Float16>(SKV_F16, chosen, random);
    test_rows<Float8>(SKV_F8_E4M3, chosen, random);
    for (const std::int32_t type : {SKV_F12_E4M7, SKV_F6_E2M3}) {
      test_packed(type, chosen, random);
      test_packing(type, chosen);
    }
  }
  return check::verdict();
}
