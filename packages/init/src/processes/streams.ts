import { closeSync, fchownSync } from 'node:fs';
import { Socket } from 'node:net';
import { makePipe } from '@drover/linux';
import type { User } from './users.ts';

/** The two ends of one standard stream of a process: init's and the process's. */
export interface StandardStream {
  readonly ours: Socket;
  /** To be closed when the process has inherited it. */
  readonly theirs: number;
}

/**
 * A pipe for a standard stream. Node would make a socket, which open(2) refuses, so that the process could not open /dev/stdout. A pipe belongs
 * to its maker with mode 0600, so it is given to the user who may open it again.
 * @param input the process reads it
 */
export function openStandardStream(input: boolean, owner: Pick<User, 'uid' | 'gid'>): StandardStream {
  const { reader, writer } = makePipe();
  const [ours, theirs] = input ? [writer, reader] : [reader, writer];
  try {
    fchownSync(theirs, owner.uid, owner.gid);
    return { ours: new Socket({ fd: ours, readable: !input, writable: input }), theirs };
  } catch (error) {
    closeSync(ours);
    closeSync(theirs);
    throw error;
  }
}
