import { chownSync, closeSync, mkdirSync, openSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { DroverError, errnoOf } from '@drover/foundation';
import { cString, libcFunctions } from './libc.ts';
import { attachMount, moveMount } from './mounts.ts';
import { callFailed, detachMount, syscall } from './syscall.ts';

/**
 * The thread of root-replacement.ts. It enters a container's namespaces. A thread may enter a mount namespace only when it shares root and
 * working directory with no other thread (setns(2)), so it has its own, and everything here is synchronous: no other work runs while it is inside.
 */
export interface RootReplacementTask {
  /** Descriptors of the container's namespaces. */
  readonly mountNamespace: number;
  readonly utsNamespace: number;
  readonly hostname: string;
  /** The new root: a descriptor of a mount that is attached nowhere. */
  readonly root: number;
  /** Where the new root is assembled: an absolute path in the root that the container waits with. */
  readonly place: string;
  /** Mounts that move from the old root to the new one: absolute paths of directories that both have. */
  readonly kept: readonly string[];
  /** Mounts that are then removed from the new root: absolute paths. */
  readonly dropped: readonly string[];
  /** Mounts that are then attached in the new root, in this order. */
  readonly attached: readonly AttachedMount[];
  /** The uid, and the gid, of the owner of mount points that are created for these. */
  readonly owner: number;
}

export interface AttachedMount {
  /** Absolute, as the container sees it; links lead where they lead in there. */
  readonly path: string;
  /** A descriptor of a mount that is attached nowhere. */
  readonly mount: number;
  readonly kind: 'directory' | 'file';
}

export type RootReplacementAnswer = { readonly error: string | undefined };

const libc = libcFunctions({
  setns: { arguments: ['i32', 'i32'], return: 'i32' },
  unshare: { arguments: ['i32'], return: 'i32' },
  sethostname: { arguments: ['buffer', 'u64'], return: 'i32' },
  fchdir: { arguments: ['i32'], return: 'i32' },
});

/** Source: include/uapi/linux/sched.h; arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (arm64). */
const CLONE_FS = 0x200;
const CLONE_NEWNS = 0x20000;
const CLONE_NEWUTS = 0x4000000;
const SYS_pivot_root: Partial<Record<string, bigint>> = { x64: 155n, arm64: 41n };

function mustSucceed(action: string, result: number): void {
  if (result !== 0) throw callFailed(action);
}

/** Runs `work` in a namespace, and leaves it whatever happens. */
function inNamespace(kind: 'UTS' | 'mount', namespace: number, own: number, work: () => void): void {
  const type = kind === 'UTS' ? CLONE_NEWUTS : CLONE_NEWNS;
  mustSucceed(`entering the ${kind} namespace`, libc().setns(namespace, type));
  try {
    work();
  } finally {
    mustSucceed(`leaving the ${kind} namespace`, libc().setns(own, type));
  }
}

function replaceRoot({ root, place, kept, dropped, attached, owner }: RootReplacementTask): void {
  attachMount(root, place);
  for (const path of kept) moveMount(path, `${place}${path}`);
  for (const path of dropped) detachMount(`removing ${path}`, `${place}${path}`);
  const old = openSync('/', 'r');
  try {
    const next = openSync(place, 'r');
    try {
      mustSucceed('entering the new root', libc().fchdir(next));
    } finally {
      closeSync(next);
    }
    // pivot_root(2), "pivot_root(".", ".")": every process whose root was the old one has the new one; the old root lies over it, and is removed.
    const number = SYS_pivot_root[process.arch];
    if (number === undefined) throw new DroverError('missing-component', `pivot_root has no known number on ${process.arch}`);
    syscall('changing the root', number, '.', '.');
    mustSucceed('entering the old root', libc().fchdir(old));
    detachMount('removing the old root', '.');
  } finally {
    closeSync(old);
  }
  // This thread's root is the container's now: no path leads out of it.
  for (const { path, mount, kind } of attached) {
    makeMountPoint(path, kind, owner);
    attachMount(mount, path, 'follow');
  }
}

/** Makes the missing parts of a path. No process of the sandbox that could interfere runs yet. */
function makeMountPoint(path: string, kind: AttachedMount['kind'], owner: number): void {
  const parts = path.split('/').slice(1);
  for (let count = 1; count <= parts.length; count++) {
    const part = `/${parts.slice(0, count).join('/')}`;
    try {
      if (count === parts.length && kind === 'file') closeSync(openSync(part, 'wx', 0o644));
      else mkdirSync(part, 0o755);
      chownSync(part, owner, owner);
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
    }
  }
}

interface OwnNamespaces {
  readonly mount: number;
  readonly uts: number;
}

let own: OwnNamespaces | undefined;

function prepare(): OwnNamespaces {
  const namespaces = { mount: openSync('/proc/thread-self/ns/mnt', 'r'), uts: openSync('/proc/thread-self/ns/uts', 'r') };
  mustSucceed('separating root and working directory', libc().unshare(CLONE_FS));
  return namespaces;
}

function run(task: RootReplacementTask): RootReplacementAnswer {
  try {
    const { mount, uts } = (own ??= prepare());
    const name = cString(task.hostname);
    inNamespace('UTS', task.utsNamespace, uts, () =>
      mustSucceed('setting the host name', libc().sethostname(name, BigInt(name.length - 1))),
    );
    inNamespace('mount', task.mountNamespace, mount, () => replaceRoot(task));
    return { error: undefined };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  }
}

parentPort?.on('message', (task: RootReplacementTask) => {
  // A port between threads has no origin; the rule is about windows.
  // oxlint-disable-next-line unicorn/require-post-message-target-origin
  parentPort?.postMessage(run(task));
});
