/** Where distributions have runc, nft, ip and mkfs.ext4. */
const administrators = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

/** A PATH with the administrator's directories, which that of an agent started by su(1) may lack. */
export function searchPath(path = process.env['PATH'] ?? '/usr/bin:/bin'): string {
  const directories = path.split(':');
  return [...directories, ...administrators.filter((directory) => !directories.includes(directory))].join(':');
}
