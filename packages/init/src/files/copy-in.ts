import { bytesOf, placeOf, resolveGiven, stringOf, writeTree, type LeftOut, type WriteTreeOptions } from '@drover/archive';
import { DroverError } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { maxLeftOutNamed } from '../limits.ts';
import { lookUpUser } from '../processes/index.ts';
import type { Call, Reply } from '../server/index.ts';

/**
 * Unpacks a tar stream into the sandbox. What cannot be written is left out and named in the answer.
 * @param user whose the copy becomes when nothing else is asked for
 * @throws {DroverError} unsafe-archive, too-large, disk-full, invalid-argument, failed-precondition
 */
export async function copyIn(call: Call<init.CopyInRequest, Reply<'copyIn'>>, workdir: string, user: string): Promise<void> {
  const requests = call.requests[Symbol.asyncIterator]();
  const first = await requests.next();
  if (first.done === true || first.value.payload.case !== 'target')
    throw new DroverError('protocol-violation', 'the first message of a copy must be its target');
  const target = first.value.payload.value;
  const owner = ownerOf(target, user);
  const place = await placeOf(resolveGiven(stringOf(target.path), workdir), { contents: !target.placeAsCp, parents: 'make' });
  const leftOut: LeftOut[] = [];
  let leftOutCount = 0;
  const { entries, bytes } = await writeTree(tarBytes(requests), {
    ...place,
    links: 'below',
    owner,
    leftOut: (item) => {
      leftOutCount++;
      if (leftOut.length < maxLeftOutNamed) leftOut.push(item);
    },
    signal: call.signal,
  });
  await call.send({
    entries: BigInt(entries),
    bytes: BigInt(bytes),
    leftOut: leftOut.map(({ path, reason }) => ({ path: bytesOf(path), reason })),
    leftOutCount: BigInt(leftOutCount),
  });
}

function ownerOf({ keepOwners, chown }: init.CopyInTarget, user: string): WriteTreeOptions['owner'] {
  if (keepOwners && chown !== '') {
    throw new DroverError('invalid-argument', 'a copy keeps its owners or gets another, not both', { hint: 'leave one of the two out' });
  }
  if (keepOwners) return 'keep';
  const { uid, gid } = lookUpUser(chown === '' ? user : chown);
  return { uid, gid };
}

async function* tarBytes(requests: AsyncIterator<init.CopyInRequest>): AsyncGenerator<Uint8Array, void, undefined> {
  for (;;) {
    const next = await requests.next();
    if (next.done === true) return;
    if (next.value.payload.case !== 'tar') throw new DroverError('protocol-violation', 'only tar bytes may follow the target of a copy');
    yield next.value.payload.value;
  }
}
