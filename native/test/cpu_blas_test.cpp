// A CPU BLAS loaded at run time: right products and eigenvectors, no threads of its own, and its number of threads
// given back. Skipped where there is none; SHADOWKV_TEST_BLAS names a file or folder to look in first.
#include "blas/cpu_blas.h"

#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/symmetric_eigen.h"
#include "cpu/thread_pool.h"

namespace {

int threads_of_process() {
  int threads = 0;
  if (std::FILE* status = std::fopen("/proc/self/status", "r")) {
    char line[256];
    while (std::fgets(line, sizeof(line), status)) {
      if (std::sscanf(line, "Threads: %d", &threads) == 1) {
        break;
      }
    }
    std::fclose(status);
  }
  return threads;
}

std::vector<double> random_symmetric(std::int64_t n, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> a(static_cast<std::size_t>(n * n));
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      a[static_cast<std::size_t>(i * n + j)] = a[static_cast<std::size_t>(j * n + i)] = normal(random);
    }
  }
  return a;
}

// a . v = value . v, orthonormal vectors, descending values.
void test_eigen(std::int64_t n, const skv::blas::Cpu* library, std::mt19937_64& random) {
  const std::vector<double> a = random_symmetric(n, random);
  const skv::cpu::SymmetricEigen eigen = skv::cpu::symmetric_eigen(a, n, library);
  const auto at = [n](const std::vector<double>& m, std::int64_t i, std::int64_t j) {
    return m[static_cast<std::size_t>(i * n + j)];
  };
  const double norm = 2 * std::sqrt(static_cast<double>(n)), tolerance = 1e-15 * 30 * static_cast<double>(n) * norm;
  bool right = true;
  for (std::int64_t k = 0; k < n; ++k) {
    for (std::int64_t i = 0; i < n; ++i) {
      double product = 0, inner = 0;
      for (std::int64_t j = 0; j < n; ++j) {
        product += at(a, i, j) * at(eigen.vectors, k, j);
        inner += at(eigen.vectors, k, j) * at(eigen.vectors, i, j);
      }
      right &= check::near(product, eigen.values[static_cast<std::size_t>(k)] * at(eigen.vectors, k, i), tolerance);
      right &= check::near(inner, i == k, tolerance);
    }
    right &= k == 0 || eigen.values[static_cast<std::size_t>(k)] <= eigen.values[static_cast<std::size_t>(k - 1)];
  }
  CHECK(right);
}

void test_products(const skv::blas::Cpu& library, std::mt19937_64& random) {
  const int rows = 37, columns = 29, inner = 113;
  std::normal_distribution<double> normal;
  std::vector<double> a(rows * inner), b(columns * inner);
  for (auto* const array : {&a, &b}) {
    for (double& x : *array) {
      x = normal(random);
    }
  }
  skv::cpu::ThreadPool pool(4);
  pool.parallel_for(16, [&](std::int64_t) {
    std::vector<double> c(rows * columns);
    library.dgemm(skv::blas::Cpu::kRowMajor, skv::blas::Cpu::kNoTranspose, skv::blas::Cpu::kTranspose, rows, columns,
                  inner, 1.0, a.data(), inner, b.data(), inner, 0.0, c.data(), columns);
    bool right = true;
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < columns; ++j) {
        long double sum = 0, bound = 0;
        for (int k = 0; k < inner; ++k) {
          const long double product = static_cast<long double>(a[static_cast<std::size_t>(i * inner + k)]) *
                                      static_cast<long double>(b[static_cast<std::size_t>(j * inner + k)]);
          sum += product;
          bound += std::fabs(product);
        }
        right &= check::near(c[static_cast<std::size_t>(i * columns + j)], static_cast<double>(sum),
                             0x1p-53 * (inner + 2) * static_cast<double>(bound));
      }
    }
    if (!right) {
      throw std::runtime_error("a concurrent product is wrong");
    }
  });
}

}  // namespace

int main() {
  std::mt19937_64 random = check::fresh_generator();
  for (const std::int64_t n : {1, 2, 17, 64}) {
    test_eigen(n, nullptr, random);
  }
  const char* const path = std::getenv("SHADOWKV_TEST_BLAS");
  // A sanitizer starts a thread of its own with the first one of the program.
  std::thread([] {}).join();
  const int before = threads_of_process();
  const auto library = skv::blas::find_cpu(path ? path : "");
  if (!library) {
    return check::verdict() == 0 ? check::skip("no CPU BLAS; the built-in eigensolver passed") : 1;
  }
  std::printf("%s\n", library->describe().c_str());
  CHECK_EQUAL(threads_of_process(), before);
  {
    const skv::blas::SingleThreaded alone(*library), nested(*library);
    test_products(*library, random);
  }
  for (const std::int64_t n : {1, 2, 17, 200}) {
    test_eigen(n, library.get(), random);
  }
  CHECK_EQUAL(threads_of_process(), before);
  if (library->set_threads && library->get_threads) {
    library->set_threads(2);
    {
      const skv::blas::SingleThreaded alone(*library);
      CHECK_EQUAL(library->get_threads(), 1);
    }
    CHECK_EQUAL(library->get_threads(), 2);
  }
  CHECK(skv::blas::find_cpu(path ? path : "") == library);
  return check::verdict();
}
