/** Run by copy-ended.ts: makes the sandbox's root its own, and writes the copy to stdout. */
import { packPath } from '@drover/init';
import { changeRootDirectory } from '@drover/linux';
import { writeHostStream } from '@drover/protocol';
import { publicErrorToWire } from '@drover/protocol/rpc';
import type { StoppedRoot } from '../backends/index.ts';
import { uidRangeSize } from '../limits.ts';
import type { CopyPart } from './sandboxes.ts';

interface Request {
  readonly root: StoppedRoot;
  readonly workdir: string;
  /** A byte string. */
  readonly path: string;
  readonly followLinks: boolean;
}

/** The user that the kernel shows for an id without a mapping (proc(5), overflowuid). */
const overflowId = 65_534;

async function* copy({ root, workdir, path, followLinks }: Request): AsyncGenerator<CopyPart> {
  changeRootDirectory(root.path);
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

const logger = {
  error: ({ err, errorId }: Record<string, unknown>, message: string): void =>
    void process.stderr.write(`${message} (${String(errorId)}): ${String(err)}\n`),
};
await writeHostStream(copy(JSON.parse(process.argv[2] ?? '') as Request), process.stdout, (error) => publicErrorToWire(error, logger));
