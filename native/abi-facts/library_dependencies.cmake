# Fails when the library needs more at load time than a bare system has: it must load where there is no CUDA.

execute_process(COMMAND "${READELF}" --dynamic --wide "${LIBRARY}" OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "\\(NEEDED\\)[^\n]*\\[[^\n]*\\]" needed "${output}")
list(TRANSFORM needed REPLACE "^.*\\[(.*)\\]$" "\\1")
if(NOT needed)
  message(FATAL_ERROR "no library at all is needed, which cannot be: was ${LIBRARY} read?")
endif()
foreach(library IN LISTS needed)
  if(NOT library MATCHES "^(libc|libm|libdl|librt|libpthread|ld-linux-x86-64)\\.so")
    message(FATAL_ERROR "${LIBRARY} needs ${library}; only the C library may be needed")
  endif()
endforeach()
message(STATUS "needs ${needed}")
