#!/bin/sh
# Runs a command with the pinned Node.js and the packages' programs in PATH: `with-node.sh COMMAND…`. `npm run` uses the machine's.
set -eu
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/node.sh"
PATH=$node_directory:$root/node_modules/.bin:$PATH
export PATH
exec "$@"
