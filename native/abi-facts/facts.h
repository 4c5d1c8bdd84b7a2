// How a C type is named in abi-facts.txt: by size and kind, which is what a foreign caller must agree on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>

#include "shadowkv.h"

template <class T>
struct StructName;  // specialised by the generated program for every struct of the header

template <class T>
std::string kind() {
  if constexpr (std::is_void_v<T>) {
    return "void";
  } else if constexpr (std::is_array_v<T>) {
    return kind<std::remove_extent_t<T>>() + "[" + std::to_string(std::extent_v<T>) + "]";
  } else if constexpr (std::is_pointer_v<T>) {
    return "pointer";
  } else if constexpr (std::is_floating_point_v<T>) {
    return "float" + std::to_string(8 * sizeof(T));
  } else if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) {
    return "int" + std::to_string(8 * sizeof(T));
  } else {
    return StructName<T>::value;
  }
}

template <class Return, class... Arguments>
void function_fact(const char* name, Return (*)(Arguments...)) {
  std::printf("function %s %s", name, kind<Return>().c_str());
  (std::printf(" %s", kind<Arguments>().c_str()), ...);
  std::printf("\n");
}

// A type, not a call: the functions' definitions are not needed here.
#define FUNCTION_FACT(name) function_fact(#name, static_cast<decltype(&name)>(nullptr))
#define CONSTANT_FACT(name) std::printf("constant %s %lld\n", #name, static_cast<long long>(name))
#define TYPE_FACT(name) std::printf("type %s %s\n", #name, kind<name>().c_str())
#define STRUCT_FACT(name) std::printf("struct %s %zu %zu\n", #name, sizeof(name), alignof(name))
#define FIELD_FACT(type, field)                                                                      \
  std::printf("field %s %s %zu %zu %s\n", #type, #field, offsetof(type, field), sizeof(type::field), \
              kind<decltype(type::field)>().c_str())
