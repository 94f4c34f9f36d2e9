import type { Readable, Writable } from 'node:stream';
import { signalProcess } from '@drover/linux';
import type { CommandRequest } from './command.ts';

export interface SpawnRequest extends CommandRequest {
  readonly rows: number;
  readonly columns: number;
  readonly stdin: boolean;
}

export interface RawExit {
  /** 0 to 255; 128 + n for signal n. */
  readonly code: number;
  /** The name of the signal that ended the process; empty when it exited. */
  readonly signal: string;
}

/** A process of the sandbox. The fake runtime has another implementation. */
export interface Spawned {
  readonly pid: number;
  /** Undefined when the request has no stdin. */
  readonly stdin: Writable | undefined;
  readonly stdout: Readable;
  /** Undefined with a terminal, which has one stream. */
  readonly stderr: Readable | undefined;
  /** Settles when the process itself has ended; its output may follow. */
  readonly exited: Promise<RawExit>;
  /** Closes stdin; on a terminal, sends the end-of-file character. */
  endStdin(): void;
  resize(rows: number, columns: number): void;
  /** Signals the whole process group; does nothing when it has ended. */
  kill(signal: NodeJS.Signals | number): void;
}

export type Spawner = (request: SpawnRequest) => Promise<Spawned>;

export function killGroup(pid: number, signal: NodeJS.Signals | number): void {
  signalProcess(-pid, signal);
}
