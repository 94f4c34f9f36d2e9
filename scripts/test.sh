#!/bin/sh
# Runs every check and every test: `npm test`. Installs its requirements first. Names the first capability that the machine lacks, and ends.
# Arguments go to vitest and skip the checks: `npm test -- e2e/link`, `npm test -- -t L-11`.
# The last line is `N passed, N failed`; a check counts as one.
set -eu
cd -- "$(dirname -- "$0")/.."
root=$PWD

sh scripts/preflight.sh privilege
sh scripts/bootstrap.sh test
sh scripts/preflight.sh kernel
. "$root/scripts/node.sh"
PATH=$node_directory:$root/node_modules/.bin:$PATH
export PATH
NODE_COMPILE_CACHE=$root/.cache/compile
export NODE_COMPILE_CACHE

counts=$root/.cache/test-counts.$$
checks=$root/.cache/check-counts.$$
trap 'rm -f "$counts" "$checks"' EXIT

node --conditions=development --disable-warning=ExperimentalWarning scripts/bundles.ts

echo '0 0' >"$checks"
if [ $# -eq 0 ]; then
  DROVER_CHECK_COUNTS=$checks sh scripts/check.sh </dev/null || true
fi

status=0
DROVER_TEST_COUNTS=$counts vitest run --reporter=default --reporter=./scripts/count-reporter.ts "$@" </dev/null || status=$?

read -r checks_passed checks_failed <"$checks"
tests_passed=0
tests_failed=0
if [ -s "$counts" ]; then read -r tests_passed tests_failed <"$counts"; fi
# A run can fail without a failed test, by a crash or an empty selection. That counts as one failure.
if [ "$status" -ne 0 ] && [ "$tests_failed" -eq 0 ]; then tests_failed=1; fi
if [ "$tests_passed" -eq 0 ] && [ "$tests_failed" -eq 0 ]; then
  echo 'no test ran' >&2
  tests_failed=1
fi
failed=$((checks_failed + tests_failed))
printf '%d passed, %d failed\n' "$((checks_passed + tests_passed))" "$failed"
[ "$failed" -eq 0 ]
