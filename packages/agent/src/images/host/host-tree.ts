import { createHash } from 'node:crypto';
import { chmod, chown, copyFile, lstat, mkdir, readdir, readFile, readlink, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { lstatSync } from 'node:fs';
import { errnoOf } from '@drover/foundation';
import { maxHostFileBytes, maxHostFiles } from '../../limits.ts';
import type { Submount } from '../images.ts';

/**
 * The image `host` (R-4): the host's own system, without homes or secrets, so that the first run needs no registry.
 *
 * One small layer, the skeleton, has the directories, the links of a merged /usr and copies of those files of /etc that programs need. /usr and
 * other large directories are submounts, read-only under a writable overlay. Of /etc only listed files are copied, and of those none that is
 * not world-readable, or that looks like a key or a password.
 */
export interface HostTree {
  readonly submounts: readonly Submount[];
  /** Over names, modes, owners and contents: the same tree, the same digest. */
  readonly digest: string;
}

/** The files and directories of /etc that are copied. A trailing `*` matches any ending. */
const taken = [
  'alternatives',
  'bash.bashrc',
  'bashrc',
  'ca-certificates',
  'ca-certificates.conf',
  'crypto-policies',
  'debian_version',
  'default/locale',
  'ethertypes',
  'fonts',
  'gai.conf',
  'host.conf',
  'inputrc',
  'java-*',
  'ld-musl-*',
  'ld.so.cache',
  'ld.so.conf',
  'ld.so.conf.d',
  'locale.alias',
  'locale.conf',
  'localtime',
  'login.defs',
  'lsb-release',
  'magic',
  'magic.mime',
  'mime.types',
  'nsswitch.conf',
  'os-release',
  'perl',
  'pki/ca-trust/extracted',
  'pki/tls/cert.pem',
  'pki/tls/certs',
  'profile',
  'profile.d',
  'protocols',
  'python3*',
  'redhat-release',
  'rpc',
  'services',
  'shells',
  'ssl/cert.pem',
  'ssl/certs',
  'ssl/openssl.cnf',
  'terminfo',
  'timezone',
  'vim',
  'apk/arch',
  'apk/keys',
  'apk/repositories',
  'apt/keyrings',
  'apt/sources.list',
  'apt/sources.list.d',
  'apt/trusted.gpg',
  'apt/trusted.gpg.d',
];

const secretName =
  /(?:^|[._-])(?:private|secrets?|passwords?|passwd|shadow|credentials?|tokens?|id_rsa|id_ed25519|netrc|jmxremote)(?:$|[._-])/i;
/** A key, a URL with a password in it, or a variable that is set to a secret or a proxy. */
const secretContent =
  /PRIVATE KEY|:\/\/[^\s/@:]+:[^\s/@]+@|\b\w*(?:proxy|token|secret|passw(?:or)?d|credential|api_?key|access_?key)\w*\s*=\s*['"]?[^\s'"$]/i;
/** Files in which a match is a sample or a setting, not a secret. */
const contentFree = /^(?:ssl|pki|ca-certificates|java-|apk\/keys|apt\/(?:keyrings|trusted))/;

/** Directories of every root, with their modes. */
const directories: readonly (readonly [string, number])[] = [
  ['dev', 0o755],
  ['etc', 0o755],
  ['home', 0o755],
  ['media', 0o755],
  ['mnt', 0o755],
  ['opt', 0o755],
  ['proc', 0o555],
  ['root', 0o700],
  ['run', 0o755],
  ['run/lock', 0o1777],
  ['srv', 0o755],
  ['sys', 0o555],
  ['tmp', 0o1777],
  ['usr', 0o755],
  ['var', 0o755],
  ['var/backups', 0o755],
  ['var/cache', 0o755],
  ['var/cache/apt', 0o755],
  ['var/cache/apt/archives', 0o755],
  ['var/cache/apt/archives/partial', 0o700],
  ['var/lib', 0o755],
  ['var/lib/apt', 0o755],
  ['var/lib/apt/lists', 0o755],
  ['var/lib/apt/lists/partial', 0o700],
  ['var/log', 0o755],
  ['var/log/apt', 0o755],
  ['var/mail', 0o2775],
  ['var/spool', 0o755],
  ['var/tmp', 0o1777],
];

/** In the root: links on a merged /usr, otherwise directories, which become submounts. */
const systemDirectories = ['bin', 'lib', 'lib32', 'lib64', 'libx32', 'sbin'];
/** The databases of package managers: no secrets, and required to install packages. */
const packageDatabases = ['/var/lib/dpkg', '/var/lib/rpm', '/usr/lib/sysimage', '/lib/apk'];

/**
 * Builds the skeleton in an empty directory.
 * @param hostRoot the host's root; another in tests
 */
export async function buildHostTree(directory: string, hostRoot = '/'): Promise<HostTree> {
  for (const [path, mode] of directories) {
    await mkdir(join(directory, path), { recursive: true });
    await chmod(join(directory, path), mode);
  }
  await symlink('/run', join(directory, 'var/run'));
  await symlink('/run/lock', join(directory, 'var/lock'));
  await chmod(directory, 0o755);
  const submounts: Submount[] = [{ lower: join(hostRoot, 'usr'), target: '/usr' }];
  for (const entry of systemDirectories) {
    const status = await lstat(join(hostRoot, entry)).catch(absent);
    if (status?.isSymbolicLink() === true) await symlink(await readlink(join(hostRoot, entry)), join(directory, entry));
    else if (status?.isDirectory() === true) {
      await mkdir(join(directory, entry));
      submounts.push({ lower: join(hostRoot, entry), target: `/${entry}` });
    }
  }
  for (const database of packageDatabases) {
    if (submounts.some((s) => database.startsWith(`${s.target}/`))) continue;
    if ((await lstat(join(hostRoot, database)).catch(absent))?.isDirectory() !== true) continue;
    await mkdir(join(directory, database), { recursive: true });
    submounts.push({ lower: join(hostRoot, database), target: database });
  }
  const copier = new Copier(join(hostRoot, 'etc'), join(directory, 'etc'));
  for (const item of taken) await copier.take(item);
  await writeAccounts(join(hostRoot, 'etc'), join(directory, 'etc'));
  return { submounts, digest: await digestOfTree(directory, submounts) };
}

/** Changes when a copied part of the host changes; cheap enough for every use. */
export function hostSignature(hostRoot = '/'): string {
  const parts: string[] = [];
  for (const item of [...taken, 'passwd', 'group', '.', 'ssl', 'default', 'apt']) {
    const status = lstatSync(join(hostRoot, 'etc', item), { throwIfNoEntry: false });
    if (status !== undefined) parts.push(`${item} ${status.ino} ${status.mtimeMs} ${status.ctimeMs} ${status.size}`);
  }
  return createHash('sha256').update(parts.join('\n')).digest('hex');
}

/** Absent or inaccessible files are left out. */
function absent(error: unknown): undefined {
  if (['ENOENT', 'ENOTDIR', 'EACCES', 'ELOOP'].includes(errnoOf(error) ?? '')) return undefined;
  throw error;
}

class Copier {
  readonly #from: string;
  readonly #to: string;
  /** Directories that exist in the skeleton. */
  readonly #made = new Set<string>();
  #files = 0;

  constructor(from: string, to: string) {
    this.#from = from;
    this.#to = to;
  }

  async take(item: string): Promise<void> {
    if (!item.endsWith('*')) {
      await this.#copy(item);
      return;
    }
    const begin = basename(item).slice(0, -1);
    const parent = dirname(item);
    for (const entry of (await readdir(join(this.#from, parent)).catch(absent)) ?? []) {
      if (entry.startsWith(begin)) await this.#copy(join(parent, entry));
    }
  }

  async #copy(path: string): Promise<void> {
    const source = join(this.#from, path);
    const target = join(this.#to, path);
    const status = await lstat(source).catch(absent);
    if (status?.isSymbolicLink() === true) {
      await this.#link(path);
      return;
    }
    if (status === undefined || !this.#mayHave(path)) return;
    if (status.isDirectory()) {
      // Only directories that are world-readable.
      if ((status.mode & 0o005) !== 0o005) return;
      await this.#directory(path);
      await Promise.all(
        (await readdir(source, { withFileTypes: true })).map(async (entry) => {
          // Most of /etc is links: certificates, alternatives.
          if (entry.isSymbolicLink()) await this.#link(join(path, entry.name));
          else await this.#copy(join(path, entry.name));
        }),
      );
      return;
    }
    if (!status.isFile() || (status.mode & 0o004) === 0 || status.size > maxHostFileBytes) return;
    const isText = !contentFree.test(path) && status.size < 1024 * 1024;
    if (isText && secretContent.test(withoutComments(await readFile(source, 'latin1')))) return;
    if (!isText && status.size < 1024 * 1024 && (await readFile(source, 'latin1')).includes('PRIVATE KEY-----')) return;
    await this.#directory(dirname(path));
    await copyFile(source, target);
    await chmod(target, status.mode & 0o755);
  }

  #mayHave(path: string): boolean {
    return !secretName.test(basename(path)) && ++this.#files <= maxHostFiles;
  }

  async #link(path: string): Promise<void> {
    if (!this.#mayHave(path)) return;
    await this.#directory(dirname(path));
    await symlink(await readlink(join(this.#from, path)), join(this.#to, path));
  }

  async #directory(path: string): Promise<void> {
    if (this.#made.has(path)) return;
    await mkdir(join(this.#to, path), { recursive: true });
    this.#made.add(path);
  }
}

const withoutComments = (text: string): string =>
  text
    .split('\n')
    .filter((line) => !/^\s*[#;]/.test(line))
    .join('\n');

/** Writes system accounts only, without password hashes (never shadow), and the files that every root needs. */
async function writeAccounts(from: string, to: string): Promise<void> {
  const isSystem = (id: string | undefined): boolean =>
    id !== undefined && /^\d+$/.test(id) && (Number(id) < 1000 || Number(id) === 65_534);
  const lines = async (file: string): Promise<string[][]> =>
    ((await readFile(join(from, file), 'utf8').catch(absent)) ?? '')
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => line.split(':'));
  const users = (await lines('passwd')).filter((fields) => isSystem(fields[2]) && fields.length >= 7);
  const names = new Set(users.map((fields) => fields[0]));
  const groups = (await lines('group')).filter((fields) => isSystem(fields[2]) && fields.length >= 4);
  if (!names.has('root')) users.unshift(['root', '*', '0', '0', 'root', '/root', '/bin/sh']);
  if (!groups.some((fields) => fields[0] === 'root')) groups.unshift(['root', '*', '0', '']);
  const passwd = users.map(([user, , uid, gid, comment, home, shell]) =>
    [user, '*', uid, gid, comment, home?.startsWith('/home/') === true ? '/' : home, shell].join(':'),
  );
  const group = groups.map(([name, , gid, members]) =>
    [
      name,
      '*',
      gid,
      (members ?? '')
        .split(',')
        .filter((member) => names.has(member))
        .join(','),
    ].join(':'),
  );
  await writeFile(join(to, 'passwd'), `${passwd.join('\n')}\n`, { mode: 0o644 });
  await writeFile(join(to, 'group'), `${group.join('\n')}\n`, { mode: 0o644 });
  await writeFile(join(to, 'hosts'), '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n', { mode: 0o644 });
  await writeFile(join(to, 'hostname'), 'sandbox\n', { mode: 0o644 });
  await writeFile(join(to, 'resolv.conf'), '', { mode: 0o644 });
  await writeFile(join(to, 'fstab'), '', { mode: 0o644 });
  await symlink('/proc/self/mounts', join(to, 'mtab'));
  for (const file of ['passwd', 'group', 'hosts', 'hostname', 'resolv.conf', 'fstab']) {
    await chmod(join(to, file), 0o644);
    await chown(join(to, file), 0, 0);
  }
}

async function digestOfTree(root: string, submounts: readonly Submount[]): Promise<string> {
  const describe = async (path: string, isLink: boolean): Promise<readonly string[]> => {
    const name = relative(root, path);
    // A link's mode and owner have no effect.
    if (isLink) return [`${name}\0link\0${await readlink(path)}`];
    const status = await lstat(path);
    const line = `${name}\0${status.mode}\0${status.uid}:${status.gid}`;
    if (status.isDirectory()) {
      const entries = (await readdir(path, { withFileTypes: true })).sort((a, b) => (a.name < b.name ? -1 : 1));
      const below = await Promise.all(entries.map((entry) => describe(join(path, entry.name), entry.isSymbolicLink())));
      return [line, ...below.flat()];
    }
    return [
      `${line}\0${createHash('sha256')
        .update(await readFile(path))
        .digest('hex')}`,
    ];
  };
  const lines = await describe(root, false);
  return `sha256:${createHash('sha256')
    .update(JSON.stringify([submounts, lines]))
    .digest('hex')}`;
}
