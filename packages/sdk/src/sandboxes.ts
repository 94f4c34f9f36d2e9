import type { Duplex, Readable } from 'node:stream';
import { clone, create, type MessageInitShape } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { isSandboxId } from '@drover/foundation';
import { api, sandbox } from '@drover/protocol';
import { withSignal, type Calls } from './calls.ts';
import { containmentOf, requireActions, type ContainmentAction, type ContainOptions, type ReleaseOptions } from './containment.ts';
import { copyIn, copyOut, type CopyInOptions, type CopyOutOptions, type SandboxPath } from './copies.ts';
import type { EventsApi } from './events.ts';
import { startExec, type ExecHandle, type ExecOptions } from './exec.ts';
import { openForward, type ForwardOptions } from './forward.ts';
import { readLogs, type LogsOptions } from './logs.ts';
import { waitReady, type ReadyOptions } from './ready.ts';
import { sandboxStateValue, type SandboxStateName } from './states.ts';

export type { SandboxStateName } from './states.ts';
/** A sandbox.v1.SandboxSpec as a plain object: `{ image: 'host', command: ['sh'] }`. */
export type SpecInit = MessageInitShape<typeof sandbox.SandboxSpecSchema>;

export interface CreateOptions {
  readonly spec: SpecInit;
  /** What the sandbox gets and nobody can read back. The spec's own `secrets` are made from these. */
  readonly secrets?: readonly Secret[];
  /** Made up when absent. */
  readonly name?: string;
  readonly project?: string;
  readonly labels?: Readonly<Record<string, string>>;
  /** Made up when absent; give one to repeat the call over a restart of your own program (L-20). */
  readonly idempotencyKey?: string;
  readonly signal?: AbortSignal;
}

export interface Secret {
  readonly name: string;
  /** Text as UTF-8. */
  readonly value: string | Uint8Array;
  /** `environment` (default): the variable NAME of its processes. `file`: /run/secrets/NAME, on a tmpfs, for its main process's user. */
  readonly target?: 'environment' | 'file';
}

export interface StatsOptions {
  readonly project?: string;
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
  /** Of the change whose end is waited for, as the call that made it returned it; absent: of now. */
  readonly generation?: bigint;
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
  /**
   * Resolves when the sandbox is in one of the states (`running`: its command has begun). Rejects with its own message when it can no longer
   * come to one, and with conflict when a later request keeps it from them.
   */
  waitFor(reference: string, states: readonly SandboxStateName[], options?: WaitOptions): Promise<api.Sandbox>;
  /**
   * Resolves when the init plan is done and the command has begun; one that has ended already has begun too. Waits through broken
   * connections. When the command never will begin, it rejects with what stands in its way (command-not-found, image-not-found, …) or
   * runtime-failed; when the plan takes too long, with timed-out.
   */
  waitReady(reference: string, options?: ReadyOptions): Promise<api.Sandbox>;
  /** Starts a process, or attaches to one (`execId`, `main` is the main process). Returns at once. */
  exec(reference: string, options: ExecOptions): ExecHandle;
  /** The execs that run in it, and those that ended lately. */
  execs(reference: string, signal?: AbortSignal): Promise<api.ExecInfo[]>;
  /** Sends a signal to an exec's process group. Resolves with false when the exec has ended already. @param name default: SIGTERM */
  killExec(reference: string, execId: string, name?: string, signal?: AbortSignal): Promise<boolean>;
  logs(reference: string, options?: LogsOptions): AsyncIterable<api.LogChunk>;
  /** Unpacks a tar stream below `path` in the sandbox. */
  copyIn(reference: string, path: SandboxPath, tar: AsyncIterable<Uint8Array>, options?: CopyInOptions): Promise<api.CopyInResponse>;
  /** A tar stream of `path`; of a directory's contents where it ends in `/.`. */
  copyOut(reference: string, path: SandboxPath, options?: CopyOutOptions): Readable;
  /** What those named, or all, use now; of those that do not run, nothing. `failures` names the hosts that did not answer. */
  stats(references?: readonly string[], options?: StatsOptions): Promise<api.GetStatsResponse>;
  /** One connection to a TCP port inside the sandbox; `end()` half-closes. */
  forward(reference: string, port: number, options?: ForwardOptions): Duplex;
  /** Every check of trust that there is, with its evidence, its verdict and when it was last made. */
  explain(reference: string, signal?: AbortSignal): Promise<api.ExplainSandboxResponse>;
  /**
   * Contains it (I-4), whatever its session is. A result that is not done is stored, and done as soon as the host is back.
   * @param actions at least one
   */
  contain(reference: string, actions: readonly ContainmentAction[], options?: ContainOptions): Promise<api.ContainSandboxResponse>;
  /** Undoes containment. @param actions absent or empty: everything that is in force */
  release(reference: string, actions?: readonly ContainmentAction[], options?: ReleaseOptions): Promise<api.ContainSandboxResponse>;
}

export function sandboxesApi(client: Client<typeof api.SandboxService>, calls: Calls, events: EventsApi): SandboxesApi {
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
    create: ({ spec, secrets = [], name = '', project = '', labels = {}, idempotencyKey, signal }) =>
      calls.mutate(
        (key) =>
          client.createSandbox(
            { idempotencyKey: key, name, project, spec: withSecrets(spec, secrets), labels: { ...labels }, secrets: secrets.map(valueOf) },
            withSignal(signal),
          ),
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
    waitFor: (reference, states, { timeoutMs = 0, generation = 0n, signal } = {}) =>
      calls.wait(
        (passedMs) =>
          client.waitSandbox(
            {
              sandbox: reference,
              states: states.map(sandboxStateValue),
              // 0 is no end; what has passed before a break counts.
              timeoutMs: BigInt(timeoutMs === 0 ? 0 : Math.max(1, Math.round(timeoutMs - passedMs))),
              generation,
            },
            withSignal(signal),
          ),
        signal,
      ),
    async waitReady(reference, options = {}) {
      const { signal } = options;
      // Events know a sandbox by its id.
      const id = isSandboxId(reference)
        ? reference
        : (await calls.ask(() => client.getSandbox({ sandbox: reference }, withSignal(signal)), signal)).id;
      return await waitReady(client, events, calls, id, options);
    },
    exec: (reference, options) => startExec(client, calls, reference, options),
    execs: async (reference, signal) => (await calls.ask(() => client.listExecs({ sandbox: reference }, withSignal(signal)), signal)).execs,
    killExec: async (reference, execId, name = '', signal) =>
      (await calls.single(() => client.killExec({ sandbox: reference, execId, signal: name }, withSignal(signal)))).signalled,
    logs: (reference, options = {}) => readLogs(client, calls, reference, options),
    copyIn: (reference, path, tar, options = {}) => copyIn(client, calls, reference, path, tar, options),
    copyOut: (reference, path, options = {}) => copyOut(client, calls, reference, path, options),
    stats: (references = [], { project = '', signal } = {}) =>
      calls.ask(() => client.getStats({ sandboxes: [...references], project }, withSignal(signal)), signal),
    forward: (reference, port, options) => openForward(client, calls, reference, port, options),
    explain: (reference, signal) => calls.ask(() => client.explainSandbox({ sandbox: reference }, withSignal(signal)), signal),
    async contain(reference, actions, { reason = '', idempotencyKey: key, signal } = {}) {
      requireActions(actions);
      const request = { sandbox: reference, actions: containmentOf(actions), reason };
      return await calls.mutate((idempotencyKey) => client.containSandbox({ ...request, idempotencyKey }, withSignal(signal)), signal, key);
    },
    release(reference, actions = [], { idempotencyKey: key, signal } = {}) {
      const request = { sandbox: reference, actions: containmentOf(actions) };
      return calls.mutate((idempotencyKey) => client.releaseSandbox({ ...request, idempotencyKey }, withSignal(signal)), signal, key);
    },
  };
}

function withSecrets(spec: SpecInit, secrets: readonly Secret[]): SpecInit {
  if (secrets.length === 0) return spec;
  const { ENVIRONMENT, FILE } = sandbox.SecretTarget;
  // A copy: the caller's may be a message already.
  const full = clone(sandbox.SandboxSpecSchema, create(sandbox.SandboxSpecSchema, spec));
  full.secrets = secrets.map(({ name, target }) =>
    create(sandbox.SecretMountSchema, { name, target: target === 'file' ? FILE : ENVIRONMENT }),
  );
  return full;
}

function valueOf({ name, value }: Secret): MessageInitShape<typeof sandbox.SecretValueSchema> {
  return { name, value: typeof value === 'string' ? new TextEncoder().encode(value) : new Uint8Array(value) };
}
