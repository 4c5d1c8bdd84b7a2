# Decides whether the CUDA backend is compiled. Sets SHADOWKV_WITH_CUDA.

set(SHADOWKV_CUDA "AUTO" CACHE STRING "Compile the CUDA backend: AUTO (when nvcc is found), ON or OFF")
set_property(CACHE SHADOWKV_CUDA PROPERTY STRINGS AUTO ON OFF)
set(SHADOWKV_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual" CACHE STRING
    "Architectures in CMAKE_CUDA_ARCHITECTURES' form; the virtual one lets newer GPUs compile for themselves")
string(REPLACE "," ";" SHADOWKV_CUDA_ARCHITECTURES "${SHADOWKV_CUDA_ARCHITECTURES}")
option(SHADOWKV_RACECHECK "CUDA kernels whose pipelines' barriers compute-sanitizer's racecheck can follow; slower" OFF)

set(SHADOWKV_WITH_CUDA OFF)
if(NOT SHADOWKV_CUDA STREQUAL "OFF")
  # Must be set before the language is enabled: CMake would otherwise probe for a GPU.
  set(CMAKE_CUDA_ARCHITECTURES "${SHADOWKV_CUDA_ARCHITECTURES}")
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      # CMake before 3.26 does not know that nvcc 12 and newer take it.
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    find_package(CUDAToolkit REQUIRED)
    set(SHADOWKV_WITH_CUDA ON)
    message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${SHADOWKV_CUDA_ARCHITECTURES}")
  elseif(SHADOWKV_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SHADOWKV_CUDA=ON, but there is no nvcc on PATH, in CUDACXX or in /usr/local/cuda")
  endif()
endif()
if(NOT SHADOWKV_WITH_CUDA)
  message(STATUS "CUDA backend: not compiled (SHADOWKV_CUDA=${SHADOWKV_CUDA})")
endif()
