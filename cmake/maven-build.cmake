# The native half of `mvn`: configure, build, put the library where the jar takes it from. Quiet unless it fails.
#
#   cmake -DINSTALL_TO=<folder> -DFACTS_TO=<folder> [-DSHADOWKV_CUDA=..] [-DSHADOWKV_CUDA_ARCHITECTURES=..]
#         [-DTARGET=shadowkv] -P cmake/maven-build.cmake

cmake_minimum_required(VERSION 3.22)
get_filename_component(ROOT "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(BUILD "${ROOT}/build/native")

set(options "-DCMAKE_BUILD_TYPE=Release")
if(NOT EXISTS "${BUILD}/CMakeCache.txt")
  find_program(NINJA ninja)
  if(NINJA)
    list(APPEND options -G Ninja)
  endif()
endif()
if(NOT "${SHADOWKV_CUDA}" STREQUAL "")  # OFF is a choice too
  list(APPEND options "-DSHADOWKV_CUDA=${SHADOWKV_CUDA}")
endif()
if(SHADOWKV_CUDA_ARCHITECTURES)
  # A list would fall apart on its way through the arguments of functions; commas are taken as well.
  string(REPLACE ";" "," architectures "${SHADOWKV_CUDA_ARCHITECTURES}")
  list(APPEND options "-DSHADOWKV_CUDA_ARCHITECTURES=${architectures}")
endif()

function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${what} failed (${status}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run("Configuring the natives" "${CMAKE_COMMAND}" -S "${ROOT}" -B "${BUILD}" ${options})
string(REGEX MATCH "CUDA backend: [^\n]*" backend "${output}")

cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
# Who only wants to use the library need not wait for its tests and benchmarks.
set(target "")
if(TARGET)
  set(target --target "${TARGET}")
endif()
run("Building the natives" "${CMAKE_COMMAND}" --build "${BUILD}" --parallel ${cores} ${target})

function(install file folder)
  if(NOT EXISTS "${BUILD}/native/${file}")
    message(FATAL_ERROR "The natives were built, but ${BUILD}/native/${file} is not there")
  endif()
  file(MAKE_DIRECTORY "${folder}")
  execute_process(COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${BUILD}/native/${file}" "${folder}"
                  COMMAND_ERROR_IS_FATAL ANY)
endfunction()

install(libshadowkv.so "${INSTALL_TO}")
if(FACTS_TO AND NOT TARGET)
  install(abi-facts/abi-facts.txt "${FACTS_TO}")
endif()
message(STATUS "libshadowkv.so is up to date; ${backend}")
