#include "blas/cpu_blas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

#include "blas/candidates.h"
#include "error.h"

namespace skv::blas {
namespace {

// bytedeco's file has the first name; distributions add the second.
constexpr const char* kNames[] = {"libopenblas.so.0", "libopenblas.so"};

constexpr const char* kFolders[] = {"/usr/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/openblas-pthread",
                                    "/usr/lib64", "/usr/local/lib"};

// What a caller's path and the system offer, in this order.
std::vector<std::string> candidates(const std::string& path) {
  if (path == kNoLibrary) {
    return {};
  }
  std::vector<std::string> files = files_of(path, kNames);
  for (const char* name : kNames) {
    files.emplace_back(name);  // the loader's own search
  }
  for (const char* folder : kFolders) {
    add_folder(files, folder, kNames);
  }
  return files;
}

template <class Function>
bool resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// OpenBLAS lends each concurrent caller a buffer of a fixed table, twice as long as the threads it was built
// for, and ends the process when the table is exhausted. Its configuration names that number.
int concurrent_calls(const std::string& configuration) {
  constexpr int kCautious = 16;
  constexpr std::string_view kKey = "MAX_THREADS=";
  const auto at = configuration.find(kKey);
  const int built_for = at == std::string::npos ? 0 : std::atoi(configuration.c_str() + at + kKey.size());
  return built_for > 0 ? built_for : kCautious;
}

// Loading starts the library's threads. When nobody used it before, they are ended again and their number is
// left at one: a context promises to have its own threads and no others. Whoever wants them sets the number.
void end_threads(void* library, const Cpu& table) {
  int (*shut_down)() = nullptr;
  if (table.set_threads && resolve(library, "blas_thread_shutdown_", shut_down)) {
    table.set_threads(1);
    (void)shut_down();
  }
}

std::shared_ptr<const Cpu> load(const std::string& path) {
  std::string searched;
  for (const std::string& file : candidates(path)) {
    void* const loaded_before = dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD);
    // Local: a runtime that brings a BLAS of its own keeps it.
    void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      std::error_code ignored;
      const char* const reason = std::filesystem::exists(file, ignored) ? dlerror() : nullptr;
      searched += (searched.empty() ? "" : ", ") + file + (reason ? " (" + std::string(reason) + ")" : "");
      continue;
    }
    auto table = std::make_shared<Cpu>();
    if (!resolve(library, "cblas_dgemm", table->dgemm)) {
      searched += (searched.empty() ? "" : ", ") + file + " (lacks cblas_dgemm)";
      dlclose(library);
      continue;
    }
    (void)resolve(library, "dsyevd_", table->dsyevd);
    (void)resolve(library, "openblas_set_num_threads", table->set_threads);
    (void)resolve(library, "openblas_get_num_threads", table->get_threads);
    char* (*configuration)() = nullptr;
    if (resolve(library, "openblas_get_config", configuration)) {
      table->configuration = configuration();
    }
    table->concurrent_calls = concurrent_calls(table->configuration);
    table->path = file;
    Dl_info info = {};
    if (dladdr(reinterpret_cast<void*>(table->dgemm), &info) && info.dli_fname) {
      table->path = info.dli_fname;
    }
    if (!loaded_before) {
      end_threads(library, *table);
    }
    // Stays loaded: others may have taken functions from it by now.
    return table;
  }
  throw Error(SKV_NOT_AVAILABLE,
              "no CPU BLAS was found, the built-in kernels are used; searched " +
                  (searched.empty() ? "nothing, as asked" : searched) +
                  "; to add one install OpenBLAS, pass the path or folder of libopenblas.so.0, or add "
                  "org.bytedeco:openblas to the class or module path");
}

std::mutex thread_count_mutex;
struct ThreadCount {
  int users = 0;
  int before = 0;
};
std::map<void (*)(int), ThreadCount> thread_counts;

}  // namespace

std::string Cpu::describe() const {
  return (configuration.empty() ? std::string("CPU BLAS") : configuration) + ", " + path +
         (dsyevd ? "" : " (without LAPACK)");
}

std::shared_ptr<const Cpu> load_cpu(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const Cpu>> loaded;
  const std::lock_guard lock(mutex);
  auto& entry = loaded[path];
  if (!entry) {
    entry = load(path);
  }
  return entry;
}

std::shared_ptr<const Cpu> find_cpu(const std::string& path) {
  try {
    return load_cpu(path);
  } catch (const Error& error) {
    if (error.status() == SKV_NOT_AVAILABLE) {
      return nullptr;
    }
    throw;
  }
}

SingleThreaded::SingleThreaded(const Cpu& library) : library_(library) {
  if (library_.set_threads && library_.get_threads) {
    const std::lock_guard lock(thread_count_mutex);
    ThreadCount& count = thread_counts[library_.set_threads];
    // Only where it changes something: setting the number starts threads.
    if (count.users++ == 0) {
      count.before = library_.get_threads();
      if (count.before != 1) {
        library_.set_threads(1);
      }
    }
  }
}

SingleThreaded::~SingleThreaded() {
  if (library_.set_threads && library_.get_threads) {
    const std::lock_guard lock(thread_count_mutex);
    ThreadCount& count = thread_counts[library_.set_threads];
    if (--count.users == 0 && count.before != 1) {
      library_.set_threads(count.before);
    }
  }
}

}  // namespace skv::blas
