#!/usr/bin/env bash
# The GPU tests of the native library under compute-sanitizer: memcheck with leaks, racecheck, initcheck, synccheck.
# Prints a line for each and a summary; 0 if nothing was found and nothing was cut off.
#
#   bench/gpu-check.sh [-t <seconds>] [-j <at once>] [-o <folder for logs>] [-n <folder of the tests>] [tool...] [test...]
#
# By default every tool but racecheck with every *_gpu_test of build/native/native/test (of native-tests in a bundle),
# 240 s each, 8 at once. The tests draw fewer cases then (SHADOWKV_TEST_SMALL=1), but launch every kernel.
# SHADOWKV_SANITIZER names the program where it is neither on the path nor in /usr/local/cuda/bin.
#
# racecheck can follow only the tests of a build for it: cmake --preset racecheck, cmake --build --preset racecheck, then
# gpu-check.sh -n build/racecheck/native/test racecheck. Where the tool itself ends with a signal, as with
# decode_layer_gpu_test, SHADOWKV_CLUSTERS=0 helps. What initcheck sees is workspaces and what the library keeps: the
# tests fill their own arrays with NaN beforehand, which their results would show.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
limit=240
jobs=8
tests=
logs=
while getopts 't:j:o:n:' option; do
  case $option in
    t) limit=$OPTARG ;;
    j) jobs=$OPTARG ;;
    o) logs=$OPTARG ;;
    n) tests=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))

fail() { echo "gpu-check.sh: $*" >&2; exit 2; }

for folder in "$tests" "$here/build/native/native/test" "$here/native-tests"; do
  if [ -n "$folder" ] && [ -d "$folder" ]; then tests=$(cd "$folder" && pwd); break; fi
done
[ -d "$tests" ] || fail "there is no folder of native tests; name one with -n"
sanitizer=${SHADOWKV_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
[ -x "$sanitizer" ] || fail "there is no compute-sanitizer on the path nor in /usr/local/cuda/bin"
logs=${logs:-$here/build/gpu-check}
mkdir -p "$logs"

tools=()
names=()
for argument in "$@"; do
  case $argument in
    memcheck | racecheck | initcheck | synccheck) tools+=("$argument") ;;
    *) names+=("$argument") ;;
  esac
done
[ ${#tools[@]} -gt 0 ] || tools=(initcheck memcheck synccheck)
if [ ${#names[@]} -eq 0 ]; then
  for test in "$tests"/*_gpu_test; do
    # The test of faults makes one, in memory that is nobody's.
    [ "$(basename "$test")" = cuda_fault_gpu_test ] || names+=("$(basename "$test")")
  done
fi

# cuBLAS writes by asynchronous bulk copies, which initcheck does not follow: kernels that read its products are reported for
# every element. These are all that do, those that read what these write, and one of cuBLAS's own.
unfollowed='round_kernel bias_kernel sum_slices_kernel start_kernel inner_products_kernel cholesky_kernel solve_kernel'
unfollowed="$unfollowed jacobi_kernel store_basis_kernel report_kernel splitKreduce_kernel"

export SHADOWKV_TEST_SMALL=1
export LD_LIBRARY_PATH="$tests/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export sanitizer tests logs limit unfollowed

check() {  # check <tool> <test>: a line of the summary, in a file beside the log
  local tool=$1 test=$2 log=$logs/$1-$2.txt started status=0 verdict options=()
  # Tests ask for more memory than there is on purpose, and every status of the runtime is checked by the library.
  case $tool in
    memcheck) options=(--leak-check full --report-api-errors no) ;;
    # cuBLAS's own kernels are reported for how they use asynchronous copies.
    racecheck) options=(--kernel-name kns=skv) ;;
    initcheck) options=(--kernel-name-exclude "kns=${unfollowed// /,kns=}") ;;
  esac
  started=$(date +%s)
  timeout -k 10 "$limit" "$sanitizer" --tool "$tool" "${options[@]}" --print-limit 20 "$tests/$test" >"$log" 2>&1 || status=$?
  if [ $status = 77 ]; then
    verdict=SKIPPED
  elif [ $status = 124 ] || [ $status = 137 ]; then
    verdict='CUT OFF'
  elif ! grep -qE '(ERROR|RACECHECK|LEAK) SUMMARY' "$log"; then
    verdict="NO VERDICT (exit $status)"
  elif grep -E '(ERROR|RACECHECK|LEAK) SUMMARY' "$log" | grep -qvE 'SUMMARY: 0 (errors|hazards|bytes)'; then
    verdict=FOUND
  elif [ $status != 0 ]; then
    verdict="TEST FAILED (exit $status)"
  else
    verdict=clean
  fi
  # What was found so far counts although the rest was cut off.
  [ "$verdict" != 'CUT OFF' ] || ! grep -qE '^=+ +(Warning|Error|Invalid|Uninitialized|Barrier|Race)' "$log" || verdict='FOUND, CUT OFF'
  printf '%-10s %-24s %4d s  %s\n' "$tool" "$test" $(($(date +%s) - started)) "$verdict" | tee "$log.verdict"
}
export -f check

rm -f "$logs"/*.verdict
for tool in "${tools[@]}"; do
  for name in "${names[@]}"; do printf '%s %s\n' "$tool" "$name"; done
done | xargs -P "$jobs" -L 1 bash -c 'check "$0" "$1"'

echo
echo "Summary ($sanitizer, logs in $logs):"
sort "$logs"/*.verdict
bad=$(cat "$logs"/*.verdict | grep -vcE ' (clean|SKIPPED)$' || true)
clean=$(cat "$logs"/*.verdict | grep -c ' clean$' || true)
for log in "$logs"/*.verdict; do
  grep -qE ' (clean|SKIPPED)$' "$log" || { echo; echo "--- $(basename "${log%.txt.verdict}")"; grep -vE '^seed|worst error' "${log%.verdict}" | head -40; }
done
echo
echo "$clean clean, $bad not"
[ "$bad" = 0 ] && [ "$clean" -gt 0 ]
