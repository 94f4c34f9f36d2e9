import type { DroverClient } from '@drover/sdk';
import type { Output } from './output/index.ts';

/** What every command receives: its output, its connection to the control plane, and its signals. */
export interface Cli {
  readonly out: Output;
  readonly env: NodeJS.ProcessEnv;
  /** Aborted by SIGINT, SIGTERM and SIGHUP, unless the command handles the signals itself. */
  readonly signal: AbortSignal;
  /** Stops signals from aborting `signal`. From then on the command handles them. */
  takeSignals(): void;
  /** Connects to the control plane that the flags, the environment or the context names. @throws {DroverError} control-plane-unreachable */
  connect(): Promise<DroverClient>;
  /** The connection flags, for commands that do more than connect. */
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

/** Runs a command with its parsed arguments. Returns the exit status; absent: 0. */
export type Handler<A extends readonly unknown[], O> = (cli: Cli, args: A, options: O) => Promise<number | void>;
