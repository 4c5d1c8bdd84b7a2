#!/usr/bin/env bash
# Runs the table of docs/throughput-results.md and leaves one JSON file a cell. A shape is one process, which makes the
# weights once and measures exact attention once a context.
#
#   bench/throughput.sh <shadowkv> <folder> [contexts] [shapes]
#   bench/throughput.sh bin/shadowkv /tmp/results "60k 122k 244k" "llama-3.1-8b glm-4-9b-1m yi-9b-200k"
#
# GPU_LIMIT (80g), HOST_LIMIT (what is free), TYPES ("bf16/bf16 f8/i8": values and landmarks; f8/i8/i8: coefficients too) and
# MORE (further options) come from the environment. Messages of a shape are in <folder>/<shape>.log.
set -u
shadowkv=$1 folder=$2 contexts=${3:-"60k 122k 244k"} shapes=${4:-"llama-3.1-8b glm-4-9b-1m yi-9b-200k"}
types=${TYPES:-"bf16/bf16 f8/i8"}
limits=(--gpu-memory-limit "${GPU_LIMIT:-80g}")
[ -z "${HOST_LIMIT:-}" ] || limits+=(--host-memory-limit "$HOST_LIMIT")
read -r -a more <<<"${MORE:-}"
mkdir -p "$folder"
failed=0
for shape in $shapes; do
  begin=$SECONDS
  if "$shadowkv" bench throughput --shape "$shape" --context "${contexts// /,}" --types "${types// /,}" --out "$folder" \
      "${limits[@]}" ${more[@]+"${more[@]}"} >"$folder/$shape.log" 2>&1; then
    echo "$shape: done in $((SECONDS - begin)) s"
  else
    failed=1
    echo "$shape: failed after $((SECONDS - begin)) s: $(tail -1 "$folder/$shape.log")"
  fi
done
exit $failed
