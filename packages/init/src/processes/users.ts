import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { DroverError, clip } from '@drover/foundation';
import { mappedIds, type IdRange } from '@drover/linux';
import { maxAccountBytes, maxGroups } from '../limits.ts';

export interface User {
  readonly uid: number;
  readonly gid: number;
  /** The user's other groups in /etc/group; none when a group was named, as with other runtimes. */
  readonly groups: readonly number[];
  readonly home: string;
  readonly name: string;
}

/**
 * Resolves a user of this sandbox: `name`, `uid`, `name:group`, `uid:gid`, or empty for root, as in an OCI image's config.
 * Numbers need no entry in /etc/passwd; names do.
 * @throws {DroverError} invalid-argument
 */
export function resolveUser(text: string, passwd: string, group: string): User {
  const colon = text.indexOf(':');
  const userPart = (colon < 0 ? text : text.slice(0, colon)) || '0';
  const groupPart = colon < 0 ? '' : text.slice(colon + 1);
  const accounts = passwd.split('\n').map((line) => line.split(':'));
  const number = parseId(userPart);
  const account = accounts.find((a) => a[0] === userPart) ?? accounts.find((a) => number !== undefined && a[2] === String(number));
  if (account === undefined && number === undefined) throw unknown('user', userPart, '/etc/passwd');
  const uid = parseId(account?.[2] ?? '') ?? number;
  if (uid === undefined) throw unknown('user', userPart, '/etc/passwd');
  const gid = groupPart === '' ? (parseId(account?.[3] ?? '') ?? 0) : resolveGroup(groupPart, group);
  return {
    uid,
    gid,
    groups: groupPart === '' && account?.[0] !== undefined ? groupsOf(account[0], group).filter((id) => id !== gid) : [],
    home: account?.[5] || (uid === 0 ? '/root' : '/'),
    name: account?.[0] ?? '',
  };
}

/**
 * The same, from the sandbox's own files. An absent file counts as empty.
 * @throws {DroverError} invalid-argument, also for ids that the sandbox's user namespace does not have
 */
export function lookUpUser(text: string, directory = '/etc'): User {
  const user = resolveUser(text, readOr(`${directory}/passwd`), readOr(`${directory}/group`));
  mustBeMapped('user', user.uid, mappedIds('uid'));
  for (const gid of [user.gid, ...user.groups]) mustBeMapped('group', gid, mappedIds('gid'));
  return user;
}

/** setuid(2) and setgroups(2) fail with EINVAL for an id without a mapping. Exported for its tests. */
export function mustBeMapped(kind: 'user' | 'group', id: number, ranges: readonly IdRange[]): void {
  // Without /proc there is nothing to compare with.
  if (ranges.length === 0 || ranges.some(({ first, last }) => id >= first && id <= last)) return;
  throw new DroverError(
    'invalid-argument',
    `the sandbox has no ${kind} ${id}: its ids end with ${Math.max(...ranges.map((r) => r.last))}`,
    {
      hint: 'use an id in that range',
    },
  );
}

function resolveGroup(text: string, group: string): number {
  const found = group
    .split('\n')
    .map((line) => line.split(':'))
    .find((g) => g[0] === text);
  const gid = parseId(found?.[2] ?? text);
  if (gid === undefined) throw unknown('group', text, '/etc/group');
  return gid;
}

function groupsOf(name: string, group: string): number[] {
  const ids = group
    .split('\n')
    .map((line) => line.split(':'))
    .flatMap(([, , id, members]) => (members?.split(',').includes(name) === true ? (parseId(id ?? '') ?? []) : []));
  return [...new Set(ids)].slice(0, maxGroups);
}

function parseId(text: string): number | undefined {
  // 2^32 - 1 means "unchanged" to setuid(2).
  return /^\d{1,10}$/.test(text) && Number(text) < 0xffff_ffff ? Number(text) : undefined;
}

function unknown(kind: string, text: string, file: string): DroverError {
  return new DroverError('invalid-argument', `the sandbox has no ${kind} ${JSON.stringify(clip(text))}`, {
    hint: `use a name from the image's ${file}, or a number`,
  });
}

/** The workload can replace the file: a pipe or a device would block PID 1, or fill its memory. */
function readOr(path: string): string {
  try {
    const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stats = fstatSync(file);
      return stats.isFile() && stats.size <= maxAccountBytes ? readFileSync(file, 'utf8') : '';
    } finally {
      closeSync(file);
    }
  } catch {
    // An image without accounts: numbers still work.
    return '';
  }
}
