#!/bin/sh
# `kernel.sh [ROOT]` fails when product code outside packages/linux loads node:ffi, opens a file of /proc or reads a cgroup.
# packages/linux has functions for that.
set -eu
cd -- "${1:-$(dirname -- "$0")/..}"
found=$(grep -rnE "node:ffi|(read|open|write|access|stat|createReadStream)[A-Za-z]*\([\`'\"]/(proc|sys/fs/cgroup)\b" packages/*/src \
  --include='*.ts' --exclude='*.test.ts' --exclude='testing.ts' --exclude-dir=testing --exclude-dir=generated | grep -v '^packages/linux/' || true)
[ -z "$found" ] || {
  printf 'only packages/linux calls the kernel:\n%s\n' "$found" >&2
  exit 1
}
