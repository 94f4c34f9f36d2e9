#!/bin/sh
# All static checks: `npm run check`. A failed check does not stop the others, and its output is printed.
set -u
cd -- "$(dirname -- "$0")/.." || exit 1
root=$PWD
. "$root/scripts/node.sh"
PATH=$node_directory:$root/node_modules/.bin:$PATH
export PATH
log=$root/.cache/check.$$.log
mkdir -p "$root/.cache"
trap 'rm -f "$log"' EXIT

passed=0
failed=0
check() {
  name=$1
  shift
  if "$@" >"$log" 2>&1; then
    passed=$((passed + 1))
    printf 'ok    %s\n' "$name"
  else
    failed=$((failed + 1))
    printf 'FAIL  %s (%s)\n' "$name" "$*"
    tail -n 100 "$log"
  fi
}

check 'generated code is fresh' sh scripts/generate.sh --check
check 'types' tsc -b
check 'lint' oxlint --type-aware --quiet
check 'format' biome format .
check 'import directions' node --disable-warning=ExperimentalWarning scripts/imports.ts
check 'calls to the kernel' sh scripts/kernel.sh
check 'sizes of files and functions' node --disable-warning=ExperimentalWarning scripts/sizes.ts
check 'nothing unused' knip --no-progress --no-config-hints

printf 'checks: %d passed, %d failed\n' "$passed" "$failed"
if [ -n "${DROVER_CHECK_COUNTS-}" ]; then printf '%d %d\n' "$passed" "$failed" >"$DROVER_CHECK_COUNTS"; fi
[ "$failed" -eq 0 ]
