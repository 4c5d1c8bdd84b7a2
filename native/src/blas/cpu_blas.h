// A CPU BLAS and LAPACK (OpenBLAS) as it is found at run time: a table of the functions used here. Nothing
// is needed to link or to load the library, and every user of the table works without it. Products of fp32 are not
// among them: on Zen 4, two cores, sgemm makes 90, 179 and 198 GFLOP/s at 32, 256 and 1024 rows, the built-in product
// 141, 178 and 178 with rows that do not depend on each other.
//
// The library's own threads are not used: they would compete with the context's, and wait by spinning. Each
// thread of a context calls it for its own part of the work, while a SingleThreaded is alive.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace skv::blas {

struct Cpu {
  // Values of the CBLAS enumerations.
  enum Order : int { kRowMajor = 101 };
  enum Transpose : int { kNoTranspose = 111, kTranspose = 112 };

  void (*dgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k, double alpha, const double* a,
                int lda, const double* b, int ldb, double beta, double* c, int ldc) = nullptr;  // cblas_dgemm
  // dsyevd_: eigenvalues ascending, eigenvectors. null when the library was built without LAPACK.
  void (*dsyevd)(const char* job, const char* triangle, const int* n, double* a, const int* lda, double* w,
                 double* work, const int* lwork, int* iwork, const int* liwork, int* info) = nullptr;
  // Both null in a library that is not OpenBLAS; then its threads are its own affair.
  void (*set_threads)(int threads) = nullptr;  // openblas_set_num_threads
  int (*get_threads)() = nullptr;              // openblas_get_num_threads

  int concurrent_calls = 1;  // how many threads may call it at once
  std::string path;          // of the file that was loaded
  std::string configuration;

  std::string describe() const;
};

// Loads the library, once for each path. `path` names files or folders to look in first, separated by ':'; it
// may be empty. Throws Error(SKV_NOT_AVAILABLE) with the places searched and what to add.
std::shared_ptr<const Cpu> load_cpu(const std::string& path);

// The same, with null for a library that is not there.
std::shared_ptr<const Cpu> find_cpu(const std::string& path);

// While one is alive the library computes on the thread that calls it. Others in this process may use the
// same library with threads: the last one to go puts their number back.
class SingleThreaded {
 public:
  explicit SingleThreaded(const Cpu& library);
  ~SingleThreaded();
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  const Cpu& library_;
};

}  // namespace skv::blas
