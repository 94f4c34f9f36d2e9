/** Where Debian has runc, nft, ip and mkfs.ext4. */
const administrators = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

/** A PATH with the administrator's directories: whoever starts the agent, with su(1) for instance, may have none of them in it. */
export function searchPath(path = process.env['PATH'] ?? '/usr/bin:/bin'): string {
  const there = path.split(':');
  return [...there, ...administrators.filter((directory) => !there.includes(directory))].join(':');
}
