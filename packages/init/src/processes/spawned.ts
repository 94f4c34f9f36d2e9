import type { Readable, Writable } from 'node:stream';
import { errnoOf } from '@drover/foundation';
import type { CommandRequest } from './command.ts';

export interface SpawnRequest extends CommandRequest {
  readonly rows: number;
  readonly columns: number;
  readonly stdin: boolean;
}

export interface RawExit {
  /** 0 to 255; 128 + n for signal n. */
  readonly code: number;
  /** The name of the signal that ended it; empty: none did. */
  readonly signal: string;
}

/** A process as the rest of init sees it; the fake runtime makes others. */
export interface Spawned {
  readonly pid: number;
  /** Undefined when stdin was not asked for. */
  readonly stdin: Writable | undefined;
  readonly stdout: Readable;
  /** Undefined with a terminal: it has one stream. */
  readonly stderr: Readable | undefined;
  /** Settles when the process itself has ended; output may follow. */
  readonly exited: Promise<RawExit>;
  /** Ends stdin, however this kind of process is told. */
  endStdin(): void;
  resize(rows: number, columns: number): void;
  /** To the whole process group; gone: nothing. */
  kill(signal: NodeJS.Signals | number): void;
}

export type Spawner = (request: SpawnRequest) => Promise<Spawned>;

export function killGroup(pid: number, signal: NodeJS.Signals | number): void {
  try {
    process.kill(-pid, signal);
  } catch (error) {
    // ESRCH: it has ended, which is what a signal usually wants.
    if (errnoOf(error) !== 'ESRCH') throw error;
  }
}
