// Files in which a library is looked for at run time.
#pragma once

#include <filesystem>
#include <span>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

namespace skv::blas {

// As a caller's path: do without the library.
inline constexpr const char* kNoLibrary = "none";

inline void add_folder(std::vector<std::string>& files, const std::filesystem::path& folder,
                       std::span<const char* const> names) {
  for (const char* const name : names) {
    files.push_back((folder / name).string());
  }
}

// What a caller's path names: files, or folders with the library by one of its names, separated by ':'.
inline std::vector<std::string> files_of(const std::string& path, std::span<const char* const> names) {
  std::vector<std::string> files;
  std::stringstream entries(path);
  for (std::string entry; std::getline(entries, entry, ':');) {
    std::error_code ignored;
    if (entry.empty()) {
      continue;
    }
    if (std::filesystem::is_directory(entry, ignored)) {
      add_folder(files, entry, names);
    } else {
      files.push_back(entry);
    }
  }
  return files;
}

}  // namespace skv::blas
