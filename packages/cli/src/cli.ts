import type { DroverClient } from '@drover/sdk';
import type { Output } from './output/index.ts';

/** What every command gets: where to write, how to reach the control plane, and what ends it. */
export interface Cli {
  readonly out: Output;
  readonly env: NodeJS.ProcessEnv;
  /** Aborted by SIGINT, SIGTERM and SIGHUP, unless the command takes the signals for itself. */
  readonly signal: AbortSignal;
  /** Stops the signals from aborting `signal`: from now on the command handles them. */
  takeSignals(): void;
  /** The client of the control plane in the flags, the environment or the context file. @throws {DroverError} control-plane-unreachable */
  connect(): Promise<DroverClient>;
  /** The flags of the connection, for what is not the client. */
  readonly connection: ConnectionFlags;
}

export interface ConnectionFlags {
  /** The name of a context. */
  readonly context?: string;
  readonly server?: string;
  readonly token?: string;
  /** Path of a PEM file. */
  readonly ca?: string;
}

/** A command's work, with its parsed arguments; gives the exit status, 0 when absent. */
export type Handler<A extends readonly unknown[], O> = (cli: Cli, args: A, options: O) => Promise<number | void>;
