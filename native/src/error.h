// The one exception type inside the library. It carries the status and the line that the caller reads.
#pragma once

#include <stdexcept>
#include <string>

#include "shadowkv_types.h"

namespace skv {

class Error : public std::runtime_error {
 public:
  Error(skv_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  skv_status status() const noexcept { return status_; }

 private:
  skv_status status_;
};

}  // namespace skv
