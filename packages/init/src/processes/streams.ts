import { closeSync, fchownSync } from 'node:fs';
import { Socket } from 'node:net';
import type { User } from './users.ts';
import { loadLibc } from './libc.ts';

/** Init's end of one standard stream of a process, and the process's. */
export interface StandardStream {
  readonly ours: Socket;
  /** To be closed once the process has it. */
  readonly theirs: number;
}

/**
 * A pipe for a standard stream. Node would make a socket, which open(2) refuses, so that /dev/stdout and the like could not be opened; and a
 * pipe belongs to its maker with mode 0600, so that only its owner may open it again. Undefined without an FFI: Node's socket has to do.
 * @param input the process reads it
 */
export function openStandardStream(input: boolean, owner: Pick<User, 'uid' | 'gid'>): StandardStream | undefined {
  const pipe = loadLibc()?.pipe();
  if (pipe === undefined) return undefined;
  const [ours, theirs] = input ? [pipe.writer, pipe.reader] : [pipe.reader, pipe.writer];
  try {
    fchownSync(theirs, owner.uid, owner.gid);
    return { ours: new Socket({ fd: ours, readable: !input, writable: input }), theirs };
  } catch (error) {
    closeSync(ours);
    closeSync(theirs);
    throw error;
  }
}
