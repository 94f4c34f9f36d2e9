#!/bin/sh
# Generates packages/protocol/src/generated from proto/. Needs no network.
set -eu
cd "$(dirname "$0")/../proto"
PATH="$PWD/../node_modules/.bin:$PATH"
export PATH
buf lint
rm -rf ../packages/protocol/src/generated
buf generate
