import { clone, create, type MessageInitShape } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { isSandboxId } from '@drover/foundation';
import { sandbox, type api } from '@drover/protocol';
import type { Calls } from './calls.ts';
import { containmentApi } from './containment.ts';
import type { EventsApi } from './events.ts';
import { processesApi } from './processes.ts';
import { waitReady, type ReadyOptions } from './ready.ts';
import { sandboxStateValue, type SandboxStateName } from './states.ts';

export type { SandboxStateName } from './states.ts';
/** A sandbox.v1.SandboxSpec as a plain object: `{ image: 'host', command: ['sh'] }`. */
export type SpecInit = MessageInitShape<typeof sandbox.SandboxSpecSchema>;

export interface CreateOptions {
  readonly spec: SpecInit;
  /** Values that no call returns. The spec's own `secrets` are made from these. */
  readonly secrets?: readonly Secret[];
  /** Generated when absent. */
  readonly name?: string;
  readonly project?: string;
  readonly labels?: Readonly<Record<string, string>>;
  /** Generated when absent. A program that gives its own can repeat the call after a restart (L-20). */
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
  /** Milliseconds, then it rejects with timed-out. Absent: no limit. */
  readonly timeoutMs?: number;
  /** The generation that the call that requested the change returned; absent: the present one. */
  readonly generation?: bigint;
  readonly signal?: AbortSignal;
}

export interface StopOptions {
  /** Milliseconds between SIGTERM and SIGKILL; absent: as the sandbox's spec has it. */
  readonly graceMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Sandboxes by id, `name` or `project/name`. Everything rejects with a DroverError. */
export type SandboxesApi = ReturnType<typeof sandboxesApi>;

export function sandboxesApi(client: Client<typeof api.SandboxService>, calls: Calls, events: EventsApi) {
  const setDesired = async (sandbox: string, desiredState: sandbox.DesiredState, { graceMs = 0, signal }: StopOptions = {}) =>
    await calls.mutate(
      (idempotencyKey, options) => client.setDesiredState({ idempotencyKey, sandbox, desiredState, graceMs }, options),
      signal,
    );

  const get = (sandbox: string, signal?: AbortSignal): Promise<api.Sandbox> =>
    calls.ask((options) => client.getSandbox({ sandbox }, options), signal);

  return {
    create({ spec, secrets = [], name = '', project = '', labels = {}, idempotencyKey, signal }: CreateOptions): Promise<api.Sandbox> {
      const request = { name, project, spec: withSecrets(spec, secrets), labels: { ...labels }, secrets: secrets.map(valueOf) };
      return calls.mutate((key, options) => client.createSandbox({ ...request, idempotencyKey: key }, options), signal, idempotencyKey);
    },
    get,
    /** All of them, page by page. */
    async list({ project = '', labels = {}, host = '', includeDeleted = false, signal }: ListOptions = {}): Promise<api.Sandbox[]> {
      const all: api.Sandbox[] = [];
      let pageToken = '';
      do {
        const request = { project, labels: { ...labels }, host, includeDeleted, pageToken };
        const page = await calls.ask((options) => client.listSandboxes(request, options), signal);
        all.push(...page.sandboxes);
        pageToken = page.nextPageToken;
      } while (pageToken !== '');
      return all;
    },
    start: (reference: string, signal?: AbortSignal): Promise<api.Sandbox> =>
      setDesired(reference, sandbox.DesiredState.RUNNING, { signal }),
    stop: (reference: string, options?: StopOptions): Promise<api.Sandbox> => setDesired(reference, sandbox.DesiredState.STOPPED, options),
    pause: (reference: string, signal?: AbortSignal): Promise<api.Sandbox> =>
      setDesired(reference, sandbox.DesiredState.PAUSED, { signal }),
    resume: (reference: string, signal?: AbortSignal): Promise<api.Sandbox> =>
      setDesired(reference, sandbox.DesiredState.RUNNING, { signal }),
    /** Resolves when the removal is stored; `waitFor(…, ['deleted'])` waits for its end. */
    remove: (reference: string, options?: StopOptions): Promise<api.Sandbox> =>
      setDesired(reference, sandbox.DesiredState.DELETED, options),
    /**
     * Resolves when the sandbox is in one of the states (`running`: its command has begun). Rejects with the sandbox's own message when it
     * can no longer reach one, and with conflict when a later request prevents it.
     */
    waitFor(
      sandbox: string,
      states: readonly SandboxStateName[],
      { timeoutMs = 0, generation = 0n, signal }: WaitOptions = {},
    ): Promise<api.Sandbox> {
      const request = { sandbox, states: states.map(sandboxStateValue), generation };
      return calls.wait((passedMs, options) => {
        // 0 is no limit. The time before a break counts.
        const leftMs = BigInt(timeoutMs === 0 ? 0 : Math.max(1, Math.round(timeoutMs - passedMs)));
        return client.waitSandbox({ ...request, timeoutMs: leftMs }, options);
      }, signal);
    },
    /**
     * Resolves when the init plan is done and the command has begun, also when it has ended since. Waits through broken connections. When
     * the command can never begin it rejects with the cause (command-not-found, image-not-found, …) or runtime-failed; when the plan
     * takes too long, with timed-out.
     */
    async waitReady(reference: string, options: ReadyOptions = {}): Promise<api.Sandbox> {
      // Events know a sandbox by its id.
      const id = isSandboxId(reference) ? reference : (await get(reference, options.signal)).id;
      return await waitReady(client, events, calls, id, options);
    },
    /** The present use of the named sandboxes, or of all; those that do not run are left out. `failures` names the hosts that did not respond. */
    stats: (references: readonly string[] = [], { project = '', signal }: StatsOptions = {}): Promise<api.GetStatsResponse> =>
      calls.ask((options) => client.getStats({ sandboxes: [...references], project }, options), signal),
    ...processesApi(client, calls),
    ...containmentApi(client, calls),
  };
}

function withSecrets(spec: SpecInit, secrets: readonly Secret[]): SpecInit {
  if (secrets.length === 0) return spec;
  const { ENVIRONMENT, FILE } = sandbox.SecretTarget;
  // A copy: the caller's spec may be a message.
  const full = clone(sandbox.SandboxSpecSchema, create(sandbox.SandboxSpecSchema, spec));
  full.secrets = secrets.map(({ name, target }) =>
    create(sandbox.SecretMountSchema, { name, target: target === 'file' ? FILE : ENVIRONMENT }),
  );
  return full;
}

function valueOf({ name, value }: Secret): MessageInitShape<typeof sandbox.SecretValueSchema> {
  return { name, value: typeof value === 'string' ? new TextEncoder().encode(value) : new Uint8Array(value) };
}
