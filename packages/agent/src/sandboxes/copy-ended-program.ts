/** Run by copy-ended.ts: makes the sandbox's root its own, and writes the copy to stdout. */
import type { MessageInitShape } from '@bufbuild/protobuf';
import { openFfi, systemCalls, viaTools } from '@drover/archive';
import { DroverError } from '@drover/foundation';
import { packPath } from '@drover/init';
import { writeHostStream, type link } from '@drover/protocol';
import { uidRangeSize } from '../limits.ts';
import type { StoppedRoot } from '../runtimes/runtime.ts';

interface Request {
  readonly root: StoppedRoot;
  readonly workdir: string;
  /** A byte string. */
  readonly path: string;
  readonly followLinks: boolean;
}

/** The user that the kernel shows for an id without a mapping (proc(5), overflowuid). */
const overflowId = 65_534;

async function* copy({ root, workdir, path, followLinks }: Request): AsyncGenerator<MessageInitShape<typeof link.HostStreamMessageSchema>> {
  // Before the root changes: a library that is loaded later, or a tool that is run instead of a system call, would be the sandbox's.
  if (systemCalls() === viaTools) throw noChroot();
  enter(root.path);
  const inside = (id: number): number =>
    root.firstId === 0 ? id : id >= root.firstId && id < root.firstId + uidRangeSize ? id - root.firstId : overflowId;
  const owner = (uid: number, gid: number) => ({ uid: inside(uid), gid: inside(gid) });
  const signal = new AbortController().signal;
  for await (const { tar, leftOut } of packPath({ path: Buffer.from(path, 'latin1'), followLinks }, workdir, signal, owner)) {
    if (leftOut !== undefined)
      yield { message: { case: 'leftOut', value: { path: leftOut.path ?? new Uint8Array(), reason: leftOut.reason ?? '' } } };
    else if (tar !== undefined) yield { message: { case: 'tar', value: tar } };
  }
}

function enter(path: string): void {
  const functions = openFfi()?.dlopen(null, { chroot: { arguments: ['buffer'], return: 'i32' } }).functions;
  if (functions === undefined || functions.chroot(Buffer.from(`${path}\0`)) !== 0) {
    throw noChroot();
  }
  process.chdir('/');
}

function noChroot(): DroverError {
  return new DroverError('missing-component', 'this host cannot copy out of a sandbox that has ended: chroot(2) is not available', {
    hint: 'start the sandbox, and copy then',
  });
}

await writeHostStream(copy(JSON.parse(process.argv[2] ?? '') as Request), process.stdout);
