// What a context handle points to, and the frame around every entry point: nothing is thrown past it.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "backend.h"
#include "shadowkv.h"

struct skv_context {
  std::unique_ptr<skv::Backend> backend;
  std::int32_t lane = 0;  // that work is given to
  char message[1024] = {};
};

struct skv_graph {
  std::unique_ptr<skv::Graph> graph;
};

namespace skv::abi {

inline void write_message(const char* text, char* message, std::uint64_t message_size) noexcept {
  if (message && message_size > 0) {
    const std::size_t length = strnlen(text, static_cast<std::size_t>(message_size - 1));
    std::memcpy(message, text, length);
    message[length] = '\0';
  }
}

// Runs an entry point's body; `function` begins every message.
template <class Body>
skv_status guarded(const char* function, char* message, std::uint64_t message_size, Body&& body) noexcept {
  const auto fail = [&](skv_status status, const char* what) noexcept {
    try {
      const std::string prefix = function;
      // An operation may have named itself already.
      const bool named = std::strncmp(what, function, prefix.size()) == 0;
      write_message((named ? std::string(what) : prefix + ": " + what).c_str(), message, message_size);
    } catch (...) {
      write_message(what, message, message_size);
    }
    return status;
  };
  try {
    body();
    return SKV_OK;
  } catch (const Error& error) {
    return fail(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(SKV_OUT_OF_HOST_MEMORY, "out of host memory");
  } catch (const std::exception& error) {
    return fail(SKV_INTERNAL, error.what());
  } catch (...) {
    return fail(SKV_INTERNAL, "an unknown failure");
  }
}

// The same for a function of a context, which keeps the message.
template <class Body>
skv_status guarded(const char* function, skv_context* context, Body&& body) noexcept {
  if (!context) {
    return SKV_INVALID_ARGUMENT;
  }
  return guarded(function, context->message, sizeof(context->message), [&] { body(*context->backend); });
}

// Checks that can be made without touching the backend's memory, one an operation. Without `pointers` only
// what sizes the workspace is looked at.
#define SKV_DECLARE(method, params, function, number) void check_##method(const params* p, bool pointers);
SKV_OPERATIONS(SKV_DECLARE)
#undef SKV_DECLARE

}  // namespace skv::abi
