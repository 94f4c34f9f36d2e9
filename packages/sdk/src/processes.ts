import type { Duplex, Readable } from 'node:stream';
import type { Client } from '@connectrpc/connect';
import type { api } from '@drover/protocol';
import type { Calls } from './calls.ts';
import { copyIn, copyOut, type CopyInOptions, type CopyOutOptions, type SandboxPath } from './copies.ts';
import { startExec, type ExecHandle, type ExecOptions } from './exec.ts';
import { openForward, type ForwardOptions } from './forward.ts';
import { readLogs, type LogsOptions } from './logs.ts';

/** The processes of a sandbox, their output, and its files and ports. */
export function processesApi(client: Client<typeof api.SandboxService>, calls: Calls) {
  return {
    /** Starts a process, or attaches to one (`execId`; `main` is the main process). Returns immediately. */
    exec: (reference: string, options: ExecOptions): ExecHandle => startExec(client, calls, reference, options),
    /** The execs that run, and those that ended recently. */
    execs: async (sandbox: string, signal?: AbortSignal): Promise<api.ExecInfo[]> =>
      (await calls.ask((options) => client.listExecs({ sandbox }, options), signal)).execs,
    /** Sends a signal to an exec's process group. Resolves with false when the exec has already ended. @param name default: SIGTERM */
    killExec: async (sandbox: string, execId: string, name = '', signal?: AbortSignal): Promise<boolean> =>
      (await calls.once((options) => client.killExec({ sandbox, execId, signal: name }, options), signal)).signalled,
    logs: (reference: string, options: LogsOptions = {}): AsyncIterable<api.LogChunk> => readLogs(client, calls, reference, options),
    /** Unpacks a tar stream below `path` in the sandbox. */
    copyIn: (
      reference: string,
      path: SandboxPath,
      tar: AsyncIterable<Uint8Array>,
      options: CopyInOptions = {},
    ): Promise<api.CopyInResponse> => copyIn(client, calls, reference, path, tar, options),
    /** A tar stream of `path`, or of the contents of a directory when the path ends in `/.`. */
    copyOut: (reference: string, path: SandboxPath, options: CopyOutOptions = {}): Readable =>
      copyOut(client, calls, reference, path, options),
    /** One connection to a TCP port inside the sandbox; `end()` half-closes. */
    forward: (reference: string, port: number, options?: ForwardOptions): Duplex => openForward(client, calls, reference, port, options),
  };
}
