// Fetches values into slots, for a key/value head or for a piece of its list.
#pragma once

#include <cstdint>

#include "cpu/elements.h"
#include "shadowkv_types.h"

namespace skv::cpu {

class ValueGather {
 public:
  // The parameters must outlive it.
  ValueGather(const skv_value_gather_params& p, InstructionSet set);

  // Entries [first, end) of the list of a (session, key/value head) pair, as far as it goes.
  void fetch(std::int64_t pair, std::int64_t first, std::int64_t end) const;
  void fetch(std::int64_t pair) const { fetch(pair, 0, p_.select); }

 private:
  const skv_value_gather_params& p_;
  Unpack unpack_;  // null: values are copied as they are
};

}  // namespace skv::cpu
