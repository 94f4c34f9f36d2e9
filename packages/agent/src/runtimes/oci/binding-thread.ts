import { chownSync, closeSync, mkdirSync, openSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { DroverError, errnoOf } from '@drover/foundation';
import { AT_FDCWD, MNT_DETACH, MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_SYMLINKS, SYS_move_mount } from './mounts.ts';
import { openSystemCalls, type SystemCalls } from './system-calls.ts';

/**
 * The thread's side of binding.ts. It works inside of a sandbox's namespaces, which a thread may only enter when it shares root and working
 * directory with no other (setns(2)); so it has its own, and everything in here is synchronous: nothing of Node's runs while it is inside.
 */
export interface BindingTask {
  /** Descriptors of the sandbox's namespaces. */
  readonly mountNamespace: number;
  readonly utsNamespace: number;
  readonly hostname: string;
  /** The new root: a descriptor of a mount that is attached nowhere. */
  readonly root: number;
  /** Where, in the root that the sandbox waits with, the new one is put together: an absolute path. */
  readonly place: string;
  /** What moves from the old root to the new one, as it is mounted: absolute paths, which are directories in both. */
  readonly kept: readonly string[];
  /** What of that goes, in the new root: absolute paths. */
  readonly dropped: readonly string[];
  /** What is mounted in the new root then, in this order. */
  readonly attached: readonly Attached[];
  /** The owner of the places that are made for that: a uid, and the gid. */
  readonly owner: number;
}

export interface Attached {
  /** Absolute, as the sandbox sees it: links lead to where they lead in there. */
  readonly path: string;
  /** A descriptor of a mount that is attached nowhere. */
  readonly mount: number;
  readonly kind: 'directory' | 'file';
}

export type BindingAnswer = { readonly error: string | undefined };

const CLONE_FS = 0x200n;
const CLONE_NEWNS = 0x20000n;
const CLONE_NEWUTS = 0x4000000n;

interface Numbers {
  readonly setns: bigint;
  readonly unshare: bigint;
  readonly pivotRoot: bigint;
  readonly setHostname: bigint;
  readonly changeDirectory: bigint;
}

/** Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (arm64). */
const numbers: Partial<Record<string, Numbers>> = {
  x64: { setns: 308n, unshare: 272n, pivotRoot: 155n, setHostname: 170n, changeDirectory: 81n },
  arm64: { setns: 268n, unshare: 97n, pivotRoot: 41n, setHostname: 161n, changeDirectory: 50n },
};

/** Enters the sandbox's namespaces, and leaves them whatever happens in there. */
function bind(calls: SystemCalls, number: Numbers, home: Home, task: BindingTask): void {
  calls.call('entering the UTS namespace', number.setns, BigInt(task.utsNamespace), CLONE_NEWUTS);
  try {
    const name = Buffer.from(task.hostname);
    calls.call('setting the host name', number.setHostname, name, BigInt(name.length));
  } finally {
    calls.call('leaving the UTS namespace', number.setns, BigInt(home.utsNamespace), CLONE_NEWUTS);
  }
  calls.call('entering the mount namespace', number.setns, BigInt(task.mountNamespace), CLONE_NEWNS);
  try {
    changeRoot(calls, number, task);
  } finally {
    calls.call('leaving the mount namespace', number.setns, BigInt(home.mountNamespace), CLONE_NEWNS);
  }
}

function changeRoot(calls: SystemCalls, number: Numbers, task: BindingTask): void {
  const { root, place, kept, dropped, attached, owner } = task;
  const attach = (path: string, mount: number, flags: bigint): void => {
    calls.call(`mounting ${path}`, SYS_move_mount, BigInt(mount), '', AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH | flags);
  };
  attach(place, root, 0n);
  // A path that ends in a link is not followed without a flag (move_mount(2)); what comes before its end is no link.
  for (const path of kept) calls.call(`moving ${path}`, SYS_move_mount, AT_FDCWD, path, AT_FDCWD, `${place}${path}`, 0n);
  for (const path of dropped) calls.unmount(`dropping ${path}`, `${place}${path}`, MNT_DETACH);
  const old = openSync('/', 'r');
  try {
    const next = openSync(place, 'r');
    try {
      calls.call('entering the new root', number.changeDirectory, BigInt(next));
    } finally {
      closeSync(next);
    }
    // The old root comes to lie over the new one, and goes (pivot_root(2), "pivot_root(".", ".")"). Whose root it was has the new one.
    calls.call('changing the root', number.pivotRoot, '.', '.');
    calls.call('entering the old root', number.changeDirectory, BigInt(old));
    calls.unmount('leaving the old root', '.', MNT_DETACH);
  } finally {
    closeSync(old);
  }
  // This thread's root is the sandbox's too by now: no path leads out of it.
  for (const { path, mount, kind } of attached) {
    makePlace(path, kind, owner);
    attach(path, mount, MOVE_MOUNT_T_SYMLINKS);
  }
}

/** Makes what is missing of a path. Nothing of the sandbox's own runs yet that could be in the way. */
function makePlace(path: string, kind: Attached['kind'], owner: number): void {
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

interface Home {
  readonly mountNamespace: number;
  readonly utsNamespace: number;
}

/** @returns what does a task @throws {DroverError} missing-component */
function prepare(): (task: BindingTask) => void {
  const calls = openSystemCalls();
  const number = numbers[process.arch];
  if (calls === undefined || number === undefined) throw new DroverError('missing-component', 'this Node cannot enter namespaces');
  const home: Home = {
    mountNamespace: openSync('/proc/thread-self/ns/mnt', 'r'),
    utsNamespace: openSync('/proc/thread-self/ns/uts', 'r'),
  };
  calls.call('taking a root of its own', number.unshare, CLONE_FS);
  return (task) => bind(calls, number, home, task);
}

let ready: ((task: BindingTask) => void) | undefined;

function answer(task: BindingTask): BindingAnswer {
  try {
    ready ??= prepare();
    ready(task);
    return { error: undefined };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  }
}

parentPort?.on('message', (task: BindingTask) => {
  // A port between threads has no origin; the rule means windows.
  // oxlint-disable-next-line unicorn/require-post-message-target-origin
  parentPort?.postMessage(answer(task));
});
