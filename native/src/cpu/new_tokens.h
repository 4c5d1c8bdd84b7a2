// The new tokens of a decode step, one a session: queries rotated into floats, keys rotated and stored with their
// values where a cache keeps them.
#pragma once

#include <cstdint>

#include "cpu/execution.h"
#include "shadowkv_types.h"

namespace skv::cpu {

struct NewTokens {
  std::int32_t input_type;
  const skv_geometry& geometry;
  std::int32_t batch;
  const void *queries, *keys, *values;
  std::int64_t query_stride, key_stride, value_stride;  // elements; 0: dense
  const skv_session_state* states;
  const skv_rope& rope;
  float* rotated_queries;  // [B][H][D]
};

// Rows [K][rows][D] of a session's cache, and the row of its new token.
struct TokenPlace {
  void *keys, *values;
  std::int64_t rows, row;
};

// place(session) tells where a session that is not idle keeps its new token; idle sessions store nothing.
void add_new_tokens(const NewTokens& tokens, Execution& execution,
                    TokenPlace (*place)(const void* context, std::int64_t session), const void* context);

}  // namespace skv::cpu
