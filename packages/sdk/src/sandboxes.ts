import { Readable, type Duplex } from 'node:stream';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { api, sandbox } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';
import { startExec, type ExecHandle, type ExecOptions } from './exec.ts';
import { openForward, type ForwardOptions } from './forward.ts';
import { chunkBytes } from './limits.ts';
import { chunksOf } from './streams.ts';
import { sandboxStateValue, type SandboxStateName } from './states.ts';

export type { SandboxStateName } from './states.ts';
/** A sandbox.v1.SandboxSpec as a plain object: `{ image: 'host', command: ['sh'] }`. */
export type SpecInit = MessageInitShape<typeof sandbox.SandboxSpecSchema>;

export interface CreateOptions {
  readonly spec: SpecInit;
  /** Made up when absent. */
  readonly name?: string;
  readonly project?: string;
  readonly labels?: Readonly<Record<string, string>>;
  /** Made up when absent; give one to repeat the call over a restart of your own program (L-20). */
  readonly idempotencyKey?: string;
  readonly signal?: AbortSignal;
}

export interface ListOptions {
  readonly project?: string;
  readonly labels?: Readonly<Record<string, string>>;
  /** A host id or name. */
  readonly host?: string;
  readonly includeDeleted?: boolean;
  readonly signal?: AbortSignal;
}

export interface WaitOptions {
  /** ms; absent waits as long as it takes. Over: DroverError timed-out. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

export interface LogsOptions {
  readonly follow?: boolean;
  /** Last lines only; absent or 0 is all that is kept. */
  readonly tailLines?: number;
  readonly signal?: AbortSignal;
}

/** Sandboxes by id, `name` or `project/name`. Everything rejects with a DroverError. */
export interface SandboxesApi {
  create(options: CreateOptions): Promise<api.Sandbox>;
  get(reference: string, signal?: AbortSignal): Promise<api.Sandbox>;
  /** All of them, page by page. */
  list(options?: ListOptions): Promise<api.Sandbox[]>;
  start(reference: string, signal?: AbortSignal): Promise<api.Sandbox>;
  /** @param graceMs between SIGTERM and SIGKILL; absent takes the sandbox's own */
  stop(reference: string, options?: { readonly graceMs?: number; readonly signal?: AbortSignal }): Promise<api.Sandbox>;
  pause(reference: string, signal?: AbortSignal): Promise<api.Sandbox>;
  resume(reference: string, signal?: AbortSignal): Promise<api.Sandbox>;
  /** Answers when the removal is wanted and stored; `waitFor(…, ['deleted'])` waits for its end. */
  remove(reference: string, options?: { readonly graceMs?: number; readonly signal?: AbortSignal }): Promise<api.Sandbox>;
  /** Resolves when the sandbox is in one of the states; rejects with its own message when it can no longer come to it. */
  waitFor(reference: string, states: readonly SandboxStateName[], options?: WaitOptions): Promise<api.Sandbox>;
  /** Starts a process, or attaches to one (`execId`, `main` is the main process). Returns at once. */
  exec(reference: string, options: ExecOptions): ExecHandle;
  logs(reference: string, options?: LogsOptions): AsyncIterable<api.LogChunk>;
  /** Unpacks a tar stream below `path` in the sandbox. */
  copyIn(reference: string, path: string, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<api.CopyInResponse>;
  /** A tar stream of `path`. */
  copyOut(reference: string, path: string, signal?: AbortSignal): Readable;
  /** One connection to a TCP port inside the sandbox; `end()` half-closes. */
  forward(reference: string, port: number, options?: ForwardOptions): Duplex;
}

export function sandboxesApi(client: Client<typeof api.SandboxService>, calls: Calls): SandboxesApi {
  const want = async (
    reference: string,
    desiredState: sandbox.DesiredState,
    { graceMs = 0, signal }: { readonly graceMs?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<api.Sandbox> =>
    await calls.mutate(
      (idempotencyKey) => client.setDesiredState({ idempotencyKey, sandbox: reference, desiredState, graceMs }, withSignal(signal)),
      signal,
    );

  return {
    create: ({ spec, name = '', project = '', labels = {}, idempotencyKey, signal }) =>
      calls.mutate(
        (key) => client.createSandbox({ idempotencyKey: key, name, project, spec, labels: { ...labels } }, withSignal(signal)),
        signal,
        idempotencyKey,
      ),
    get: (reference, signal) => calls.ask(() => client.getSandbox({ sandbox: reference }, withSignal(signal)), signal),
    async list({ project = '', labels = {}, host = '', includeDeleted = false, signal } = {}) {
      const all: api.Sandbox[] = [];
      let pageToken = '';
      do {
        const request = { project, labels: { ...labels }, host, includeDeleted, pageToken };
        const page = await calls.ask(() => client.listSandboxes(request, withSignal(signal)), signal);
        all.push(...page.sandboxes);
        pageToken = page.nextPageToken;
      } while (pageToken !== '');
      return all;
    },
    start: (reference, signal) => want(reference, sandbox.DesiredState.RUNNING, { signal }),
    stop: (reference, options) => want(reference, sandbox.DesiredState.STOPPED, options),
    pause: (reference, signal) => want(reference, sandbox.DesiredState.PAUSED, { signal }),
    resume: (reference, signal) => want(reference, sandbox.DesiredState.RUNNING, { signal }),
    remove: (reference, options) => want(reference, sandbox.DesiredState.DELETED, options),
    waitFor: (reference, states, { timeoutMs = 0, signal } = {}) =>
      calls.ask(
        () =>
          client.waitSandbox(
            { sandbox: reference, states: states.map(sandboxStateValue), timeoutMs: BigInt(timeoutMs) },
            withSignal(signal),
          ),
        signal,
      ),
    exec: (reference, options) => startExec(client, calls, reference, options),
    logs: (reference, { follow = false, tailLines = 0, signal } = {}) =>
      calls.stream(client.logs({ sandbox: reference, follow, tailLines: BigInt(tailLines) }, withSignal(signal))),
    copyIn: (reference, path, tar, signal) => calls.single(() => client.copyIn(tarMessages(reference, path, tar), withSignal(signal))),
    copyOut: (reference, path, signal) =>
      Readable.from(bytesOfTar(calls.stream(client.copyOut({ sandbox: reference, path }, withSignal(signal)))), {
        objectMode: false,
        highWaterMark: chunkBytes,
      }),
    forward: (reference, port, options) => openForward(client, calls, reference, port, options),
  };
}

async function* tarMessages(reference: string, path: string, tar: AsyncIterable<Uint8Array>): AsyncGenerator<api.CopyInRequest> {
  const target = create(api.CopyTargetSchema, { sandbox: reference, path });
  yield create(api.CopyInRequestSchema, { payload: { case: 'target', value: target } });
  for await (const bytes of tar) {
    for (const chunk of chunksOf(bytes)) yield create(api.CopyInRequestSchema, { payload: { case: 'tar', value: chunk } });
  }
}

async function* bytesOfTar(messages: AsyncIterable<api.CopyOutResponse>): AsyncGenerator<Uint8Array> {
  for await (const { tar } of messages) if (tar.byteLength > 0) yield tar;
}
