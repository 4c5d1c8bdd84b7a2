// Functions that the host's code and kernels share. On the host they are always inlined: files for different
// instruction sets include them, and of copies that are not inlined a lesser processor might be given one that it
// cannot run.
#pragma once

#ifdef __CUDACC__
#define SKV_BOTH __host__ __device__ inline
#else
#define SKV_BOTH __attribute__((always_inline)) inline
#endif
