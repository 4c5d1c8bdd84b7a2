# Fails unless the library's dynamic symbols are exactly the functions that abi-facts.txt lists.

execute_process(COMMAND "${NM}" --dynamic --defined-only --format=posix "${LIBRARY}"
                OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "(^|\n)[^ \n]+ [A-TV-Z] " exported "${output}")
list(TRANSFORM exported REPLACE "^\n?([^ ]+) . $" "\\1")

file(STRINGS "${FACTS}" declared REGEX "^function ")
list(TRANSFORM declared REPLACE "^function ([^ ]+).*$" "\\1")
list(LENGTH declared count)
if(count EQUAL 0)
  message(FATAL_ERROR "${FACTS} lists no function")
endif()

set(missing ${declared})
list(REMOVE_ITEM missing ${exported})
set(extra ${exported})
list(REMOVE_ITEM extra ${declared})
if(missing OR extra)
  message(FATAL_ERROR "declared but not exported: ${missing}\nexported but not declared: ${extra}")
endif()
message(STATUS "${count} functions, all exported and nothing else")
