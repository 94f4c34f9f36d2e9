#!/bin/sh
# Generates packages/protocol/src/generated from proto/, docs/limits.md from the packages' limits, and docs/policy.schema.json. Needs no network.
# With --check it changes no file, and fails when a generated file is stale.
set -eu
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/node.sh"
cd "$root/proto"
PATH=$node_directory:$root/node_modules/.bin:$PATH
export PATH
target=../packages/protocol/src/generated
buf lint
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The template's `out` is relative to the output directory.
mkdir -p "$scratch/proto"
buf generate -o "$scratch/proto"
fresh=$scratch/packages/protocol/src/generated
if [ "${1-}" = --check ]; then
  if ! diff -r "$fresh" "$target"; then
    echo 'the generated code is not that of proto/: run npm run generate' >&2
    exit 1
  fi
  node ../scripts/limits.ts --check
  node --conditions=development ../scripts/policy-schema.ts --check
  exit
fi
# Files are replaced one by one, so that a program that starts meanwhile finds all of them.
for file in $(cd "$fresh" && find . -type f); do
  mkdir -p "$target/${file%/*}"
  cmp -s "$fresh/$file" "$target/$file" || cp "$fresh/$file" "$target/$file"
done
for file in $(cd "$target" && find . -type f); do
  [ -e "$fresh/$file" ] || rm "$target/$file"
done
node ../scripts/limits.ts
node --conditions=development ../scripts/policy-schema.ts
