#!/bin/sh
# Checks the capabilities that the tests need: `preflight.sh privilege|kernel`. Prints the first missing one with the next step, and fails.
#   privilege  before any installation
#   kernel     the needs of containers, checked with the packages of scripts/packages.txt
set -eu

# lacking CAPABILITY HINT
lacking() {
  printf 'drover: this machine lacks a capability that the tests need: %s\n  hint: %s\n' "$1" "$2" >&2
  exit 6
}

# need CAPABILITY HINT COMMAND…
need() {
  capability=$1
  hint=$2
  shift 2
  if "$@" >/dev/null 2>&1; then return 0; fi
  lacking "$capability" "$hint"
}

container='in a container, allow it (docker run --privileged), or use a virtual machine'

privilege() {
  need root 'run npm test as root: the tests make containers' test "$(id -u)" -eq 0
}

kernel() {
  need 'mount namespaces' "$container" unshare --mount true
  need 'PID namespaces' "$container" unshare --pid --fork true
  need 'network namespaces' "$container" unshare --net true
  need 'user namespaces' 'sysctl user.max_user_namespaces=65536; on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0' \
    unshare --user --map-root-user true
  need 'veth interfaces' "modprobe veth; $container" unshare --net ip link add preflight0 type veth peer name preflight1
  need nftables "modprobe nf_tables; $container" unshare --net nft 'add table inet preflight; add chain inet preflight nat { type nat hook postrouting priority 100 ; }'
  # shellcheck disable=SC2016
  need overlayfs 'modprobe overlay; in a container, put /tmp on a volume that is not an overlay itself' \
    unshare --mount sh -ec 'directory=$(mktemp -d); trap "rmdir $directory" EXIT; mount -t tmpfs tmpfs "$directory"
      mkdir "$directory/lower" "$directory/upper" "$directory/work" "$directory/root"
      mount -t overlay overlay -o "lowerdir=$directory/lower,upperdir=$directory/upper,workdir=$directory/work" "$directory/root"
      umount "$directory/root"; umount "$directory"'
  need 'loop devices' "modprobe loop; $container" losetup --find
  for controller in cpu memory pids; do
    need "the cgroup controller $controller" 'mount the cgroup file system at /sys/fs/cgroup, with the controllers cpu, memory and pids' has_controller "$controller"
  done
  need 'a writable cgroup file system' "$container" can_make_cgroup
}

# has_controller NAME: whether cgroup v2, or a hierarchy of v1, has the controller
has_controller() {
  grep -qw "$1" /sys/fs/cgroup/cgroup.controllers 2>/dev/null || [ -d "/sys/fs/cgroup/$1/" ]
}

can_make_cgroup() {
  parent=/sys/fs/cgroup
  if [ -d "$parent/pids" ]; then parent=$parent/pids; fi
  mkdir "$parent/preflight.$$" && rmdir "$parent/preflight.$$"
}

"${1:?usage: preflight.sh privilege|kernel}"
