#include "blas/cublas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <vector>

#include "blas/candidates.h"
#include "error.h"

namespace skv::blas {
namespace {

constexpr const char* kNames[] = {"libcublas.so.13", "libcublas.so.12"};

// Folders where toolkits put it, for machines whose loader is not told about them.
constexpr const char* kFolders[] = {"/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib",
                                    "/usr/lib/x86_64-linux-gnu", "/usr/lib64"};

// What a caller's path, the toolkit's variables and the system offer, in this order.
std::vector<std::string> candidates(const std::string& path) {
  if (path == kNoLibrary) {
    return {};
  }
  std::vector<std::string> files = files_of(path, kNames);
  for (const char* variable : {"CUDA_PATH", "CUDA_HOME"}) {
    if (const char* root = std::getenv(variable); root && *root) {
      add_folder(files, std::filesystem::path(root) / "lib64", kNames);
    }
  }
  for (const char* folder : kFolders) {
    add_folder(files, folder, kNames);
  }
  for (const char* name : kNames) {
    files.emplace_back(name);  // the loader's own search
  }
  return files;
}

template <class Function>
bool resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// cuBLAS needs cuBLASLt, which lies beside it where neither is in the loader's path.
void* open_library(const std::string& file) {
  const std::filesystem::path path(file);
  if (path.has_parent_path()) {
    std::string light = path.filename().string();
    if (const auto at = light.find("cublas."); at != std::string::npos) {
      light.replace(at, 7, "cublasLt.");
      (void)dlopen((path.parent_path() / light).c_str(), RTLD_NOW | RTLD_GLOBAL);
    }
  }
  return dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
}

std::shared_ptr<const Cublas> load(const std::string& path) {
  std::string searched;
  for (const std::string& file : candidates(path)) {
    void* const library = open_library(file);
    if (!library) {
      searched += (searched.empty() ? "" : ", ") + file;
      continue;
    }
    auto table = std::make_shared<Cublas>();
    const bool complete = resolve(library, "cublasCreate_v2", table->create) &&
                          resolve(library, "cublasDestroy_v2", table->destroy) &&
                          resolve(library, "cublasGetVersion_v2", table->get_version) &&
                          resolve(library, "cublasSetStream_v2", table->set_stream) &&
                          resolve(library, "cublasSetMathMode", table->set_math_mode) &&
                          resolve(library, "cublasSetWorkspace_v2", table->set_workspace) &&
                          resolve(library, "cublasGemmEx", table->gemm_ex) &&
                          resolve(library, "cublasGemmStridedBatchedEx", table->gemm_strided_batched_ex);
    if (!complete) {
      searched += (searched.empty() ? "" : ", ") + file + " (lacks functions)";
      dlclose(library);
      continue;
    }
    table->path = file;
    Dl_info info = {};
    if (dladdr(reinterpret_cast<void*>(table->create), &info) && info.dli_fname) {
      table->path = info.dli_fname;
    }
    // Stays loaded: cuBLAS does not survive being unloaded while the driver lives.
    return table;
  }
  throw Error(SKV_NOT_AVAILABLE, "cuBLAS was not found; searched " +
                                     (searched.empty() ? "nothing, as asked" : searched) +
                                     "; install the CUDA toolkit, pass the folder of libcublas.so.13 or .12, or add "
                                     "org.bytedeco:cuda-platform-redist to the class or module path");
}

}  // namespace

std::shared_ptr<const Cublas> load_cublas(const char* path) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const Cublas>> loaded;
  const std::string key = path ? path : "";
  const std::lock_guard lock(mutex);
  auto& entry = loaded[key];
  if (!entry) {
    entry = load(key);
  }
  return entry;
}

}  // namespace skv::blas
