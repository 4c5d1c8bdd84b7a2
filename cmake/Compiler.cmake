# What every native source is compiled with, and which files may use which instructions.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
# With the lines of the source for the profiler, and compressed: device code is most of the library's size.
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG -lineinfo")
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  string(APPEND CMAKE_CUDA_FLAGS_RELEASE " --compress-mode=size")
endif()

set(SHADOWKV_SANITIZE "" CACHE STRING "Sanitizers of the build, as -fsanitize= takes them; empty for none")
if(SHADOWKV_SANITIZE)
  # Applies to the tests as well: an executable without the sanitizer cannot load a library with it.
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${SHADOWKV_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>")
  # The instrumented code looks uninitialized to the optimizer where the source is not.
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-Wno-error=maybe-uninitialized>")
  add_link_options("-fsanitize=${SHADOWKV_SANITIZE}")
endif()

# What the library exports is decided when it is linked (native/exported.map), so that the tests can link the same
# objects with everything visible. Nothing is meant to be interposed: calls may be inlined all the same.
# (CUDA sources are reached through their backend and stay hidden.)
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fno-semantic-interposition>")
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

# Warnings are errors in everything that is written here.
function(shadowkv_warnings target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Werror>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>")
endfunction()

# A file is compiled for the portable x86-64 baseline unless its name says which instructions it uses. The
# dispatcher decides at run time which of them may be entered.
function(shadowkv_instruction_sets)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
    elseif(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mfma;-mf16c")
    elseif(source MATCHES "_avx512_bf16\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512bf16;-mavx512vnni;-mfma;-mf16c")
    endif()
  endforeach()
endfunction()
