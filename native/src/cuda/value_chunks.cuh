// How a warp moves a chunk of one head from host memory into a slot: as it is, or unpacked on the way.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "value_types.h"

namespace skv::cuda {

struct ValueChunk {
  const unsigned char* source;  // pinned host memory
  unsigned char* target;        // of the slot
  float scale;                  // where the slot holds values without one
  int elements;                 // C * D
};

// Reads that pass by the caches of the SM: host memory is read once, and may have changed since the last step.
__device__ inline void load_host(uint4& to, const void* host) {
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "l"(host));
}
__device__ inline void load_host(uint2& to, const void* host) {
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(to.x), "=r"(to.y) : "l"(host));
}
__device__ inline void load_host(std::uint32_t& to, const void* host) {
  asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(to) : "l"(host));
}

// The classes below have two steps, so that a warp can ask for several chunks before it waits for the first: ask()
// sends the reads, put() writes what they brought. kPieces is how many pieces a lane holds between the two; with 0
// any number of them is read and written one by one by put().

// Words of 16 bytes, as they are.
template <int kPieces>
class CopiedChunk {
 public:
  static constexpr bool kScaled = false;

  __device__ void ask(const ValueChunk& chunk, int lane) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      load_host(data_[i], chunk.source + (i * 32 + lane) * kWord);
    }
  }

  __device__ void put(const ValueChunk& chunk, int bytes, int lane) const {
    if constexpr (kPieces > 0) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        *reinterpret_cast<uint4*>(chunk.target + (i * 32 + lane) * kWord) = data_[i];
      }
    } else {
      for (int at = lane * kWord; at < bytes; at += 32 * kWord) {
        uint4 word;
        load_host(word, chunk.source + at);
        *reinterpret_cast<uint4*>(chunk.target + at) = word;
      }
    }
  }

 private:
  static constexpr int kWord = 16;
  uint4 data_[kPieces > 0 ? kPieces : 1];
};

// Packed chunks, in pieces of a format: some elements of each part of a chunk, whose bits share bytes. What lanes write
// side by side are whole sectors.
template <class Format, int kPieces>
class UnpackedChunk {
 public:
  static constexpr bool kScaled = Format::kScaled;

  __device__ void ask(const ValueChunk& chunk, int lane) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (i * 32 + lane < Format::pieces(chunk.elements)) {
        data_[i].ask(chunk, i * 32 + lane);
      }
    }
  }

  __device__ void put(const ValueChunk& chunk, int /*bytes*/, int lane) const {
    if constexpr (kPieces > 0) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        if (i * 32 + lane < Format::pieces(chunk.elements)) {
          data_[i].put(chunk, i * 32 + lane);
        }
      }
    } else {
      for (int piece = lane; piece < Format::pieces(chunk.elements); piece += 32) {
        Format one;
        one.ask(chunk, piece);
        one.put(chunk, piece);
      }
    }
  }

 private:
  Format data_[kPieces > 0 ? kPieces : 1];
};

template <int kWords>
using WordsOf = std::conditional_t<kWords == 4, uint4, std::conditional_t<kWords == 2, uint2, std::uint32_t>>;

template <class Words>
__device__ inline std::uint32_t word_of(const Words& words, int i) {
  return reinterpret_cast<const std::uint32_t*>(&words)[i];
}
template <class Words>
__device__ inline std::uint32_t& word_of(Words& words, int i) {
  return reinterpret_cast<std::uint32_t*>(&words)[i];
}

// F12_E4M7: kWords times four elements of each half of the chunk, whose upper bits are the two halves of the same
// bytes. Four bytes become four BF16 by exchanging bytes; then two products by powers of two, exact, bring them to
// their place.
template <int kWords>
class TwelveBitPiece {
 public:
  static constexpr bool kScaled = true;

  __device__ static int pieces(int elements) { return elements / (2 * kElements); }

  __device__ void ask(const ValueChunk& chunk, int piece) {
    load_host(low_[0], chunk.source + piece * kElements);
    load_host(low_[1], chunk.source + chunk.elements / 2 + piece * kElements);
    load_host(high_, chunk.source + chunk.elements + piece * kElements);
  }

  __device__ void put(const ValueChunk& chunk, int piece) const {
    const auto power = __float2bfloat162_rn(kTwelveBitPower), scale = __float2bfloat162_rn(chunk.scale);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      WordsOf<2 * kWords> pairs;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const std::uint32_t low = word_of(low_[half], i);
        const std::uint32_t upper = word_of(high_, i) >> (4 * half);
        // Sign to the highest bit of each byte, upper bits of the exponent to the lowest three.
        const std::uint32_t bytes = (upper & 0x07070707U) | (upper & 0x08080808U) << 4;
        word_of(pairs, 2 * i) = scaled(__byte_perm(low, bytes, 0x5140), power, scale);
        word_of(pairs, 2 * i + 1) = scaled(__byte_perm(low, bytes, 0x7362), power, scale);
      }
      const int first = half * (chunk.elements / 2) + piece * kElements;
      *reinterpret_cast<WordsOf<2 * kWords>*>(chunk.target + 2 * first) = pairs;
    }
  }

 private:
  static constexpr int kElements = 4 * kWords;

  __device__ static std::uint32_t scaled(std::uint32_t pair, __nv_bfloat162 power, __nv_bfloat162 scale) {
    const auto number = __hmul2(__hmul2(reinterpret_cast<const __nv_bfloat162&>(pair), power), scale);
    return reinterpret_cast<const std::uint32_t&>(number);
  }

  WordsOf<kWords> low_[2], high_;
};

// F6_E2M3: kWords times four elements of each quarter of the chunk. Sign and five bits are those of an e4m3 of the same
// scale.
template <int kWords>
class SixBitPiece {
 public:
  static constexpr bool kScaled = false;

  __device__ static int pieces(int elements) { return elements / (4 * kElements); }

  __device__ void ask(const ValueChunk& chunk, int piece) {
    load_host(low_[0], chunk.source + piece * kElements);
    load_host(low_[1], chunk.source + chunk.elements / 4 + piece * kElements);
    load_host(high_, chunk.source + chunk.elements / 2 + piece * kElements);
  }

  __device__ void put(const ValueChunk& chunk, int piece) const {
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      WordsOf<kWords> bytes;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const std::uint32_t low = word_of(low_[quarter % 2], i) >> (4 * (quarter / 2));
        const std::uint32_t upper = word_of(high_, i) >> (2 * quarter);
        word_of(bytes, i) = (low & 0x0f0f0f0fU) | (upper & 0x01010101U) << 4 | (upper & 0x02020202U) << 6;
      }
      const int first = quarter * (chunk.elements / 4) + piece * kElements;
      *reinterpret_cast<WordsOf<kWords>*>(chunk.target + first) = bytes;
    }
  }

 private:
  static constexpr int kElements = 4 * kWords;

  WordsOf<kWords> low_[2], high_;
};

}  // namespace skv::cuda
