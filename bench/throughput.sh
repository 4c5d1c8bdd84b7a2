#!/usr/bin/env bash
# Runs the table of docs/throughput-results.md and leaves one JSON file a cell.
#
#   bench/throughput.sh <shadowkv> <folder> [contexts] [shapes]
#   bench/throughput.sh bin/shadowkv /tmp/results "60k 122k 244k" "llama-3.1-8b glm-4-9b-1m yi-9b-200k"
#
# GPU_LIMIT (80g), HOST_LIMIT (what is free), TYPES ("fp8,i8 bf16,bf16": values and landmarks) and MORE (further options)
# come from the environment. A cell that fails leaves its message beside the others' results.
set -u
shadowkv=$1 folder=$2 contexts=${3:-"60k 122k 244k"} shapes=${4:-"llama-3.1-8b glm-4-9b-1m yi-9b-200k"}
limits=(--gpu-memory-limit "${GPU_LIMIT:-80g}")
[ -z "${HOST_LIMIT:-}" ] || limits+=(--host-memory-limit "$HOST_LIMIT")
read -r -a more <<<"${MORE:-}"
mkdir -p "$folder"
for shape in $shapes; do
  for context in $contexts; do
    for types in ${TYPES:-"fp8,i8 bf16,bf16"}; do
      name=$shape-$context-${types/,/-}
      if "$shadowkv" bench throughput --shape "$shape" --context "$context" "${limits[@]}" --value-type "${types%,*}" \
          --landmark-type "${types#*,}" --json ${more[@]+"${more[@]}"} >"$folder/$name.part" 2>"$folder/$name.err"; then
        mv "$folder/$name.part" "$folder/$name.json"
        rm "$folder/$name.err"
        echo "$name: done"
      else
        rm -f "$folder/$name.part"
        echo "$name: $(tail -1 "$folder/$name.err")"
      fi
    done
  done
done
