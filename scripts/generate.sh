#!/bin/sh
# Generates packages/protocol/src/generated from proto/. Needs no network.
# With --check it changes nothing, and fails when what is there differs.
set -eu
cd "$(dirname "$0")/../proto"
PATH="$PWD/../node_modules/.bin:$PATH"
export PATH
target=../packages/protocol/src/generated
buf lint
if [ "${1-}" != --check ]; then
  rm -rf "$target"
  buf generate
  exit
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The template's `out` is relative to the output directory, so the same template serves both.
mkdir -p "$scratch/proto"
buf generate -o "$scratch/proto"
if ! diff -r "$scratch/packages/protocol/src/generated" "$target"; then
  echo 'the generated code is not that of proto/: run sh scripts/generate.sh' >&2
  exit 1
fi
