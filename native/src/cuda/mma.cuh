// Tensor-core and memory instructions that CUDA C++ has no name for. All of them exist from sm_80 on.
//
// Fragments of m16n8k16, with g = lane / 4 and t = lane % 4:
//   A[16][16]: a0 = (g, 2t..2t+1)  a1 = (g+8, same)  a2 = (g, 2t+8..2t+9)  a3 = (g+8, same)
//   B[16][8]:  b0 = (2t..2t+1, g)  b1 = (2t+8..2t+9, g)
//   C[16][8]:  c0, c1 = (g, 2t..2t+1)  c2, c3 = (g+8, same)
// The order of the inner dimension is free as long as A and B agree on it, which is what lets a lane take
// 16 consecutive bytes of a row instead of four scattered words.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace skv::cuda {

__device__ inline void mma_bf16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void mma_f16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                               std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8x8 matrices of 16-bit elements; lane 8i + j gives the address of row j of matrix i.
__device__ inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void load_two_matrices(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void load_two_matrices_transposed(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

__device__ inline void copy_async_4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

// Ends a group of copies of this thread.
__device__ inline void copy_async_end_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until no more than that many of the last groups are under way.
template <int kGroups>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

__device__ inline void copy_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Lets the next launch on the stream begin beside this one, once all blocks have said so (sm_90; before, it begins
// behind this one).
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the launch before this one, which let it begin early, is done.
__device__ inline void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Reads that nobody repeats: they do not displace what the L1 cache holds.
__device__ inline uint4 load_once_16(const void* global) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(global));
  return v;
}

__device__ inline uint2 load_once_8(const void* global) {
  uint2 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(global));
  return v;
}

__device__ inline std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ inline float round_to_bf16(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

__device__ inline std::uint32_t pack_f16(float low, float high) {
  const __half2 h = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&h);
}

__device__ inline float bf16_low(std::uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ inline float bf16_high(std::uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000U);
}

// Two of four bytes of whole numbers, from byte kFirst on, as two bf16, exactly: the lower seven bits behind 128, less
// 128 or, of negative ones, 256.
template <int kFirst>
__device__ inline std::uint32_t bf16_of_i8(std::uint32_t bytes) {
  static_assert(kFirst == 0 || kFirst == 2);
  constexpr std::uint32_t k128 = 0x43004300U;
  const std::uint32_t apart = __byte_perm(bytes, 0, kFirst == 0 ? 0x4140 : 0x4342);
  const std::uint32_t digits = (apart & 0x007f007fU) | k128, sign = (apart & 0x00800080U) | k128;
  const __nv_bfloat162 x =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&digits), *reinterpret_cast<const __nv_bfloat162*>(&sign));
  return *reinterpret_cast<const std::uint32_t*>(&x);
}

// Two e4m3 bytes as two f16, exactly.
__device__ inline std::uint32_t f16_of_e4m3(std::uint16_t pair) {
  const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
  return static_cast<std::uint32_t>(h.x) | static_cast<std::uint32_t>(h.y) << 16;
}

__device__ inline float f32_of_e4m3(std::uint8_t byte) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(byte, __NV_E4M3)));
}

// 2^x; 0 for -infinity.
__device__ inline float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

constexpr float kLog2E = 1.4426950408889634F;
constexpr float kLn2 = 0.6931471805599453F;

}  // namespace skv::cuda
