import { clone, create } from '@bufbuild/protobuf';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import { DroverError, isSandboxId, makeUpName, newSandboxId, parseName, parseProject } from '@drover/foundation';
import { api, desiredStates, sandbox, sandboxStates } from '@drover/protocol';
import { parseLabels } from '@drover/spec';
import { parseSetup } from '@drover/spec/setup';
import { defaultPageSize, maxPageSize } from '../../limits.ts';
import { placeSandbox } from '../../placement/index.ts';
import { checkSecrets } from '../../secrets/index.ts';
import { currentStart, labelOf, sandboxState, type SandboxRow } from '../../model/index.ts';
import type { SandboxFilter, Tables } from '../../store/index.ts';
import type { SandboxStateName } from '@drover/protocol';
import { parseSandboxSpec, parseStopGraceMs } from '@drover/spec/sandbox';
import { callerOf, type ApiContext, once } from '../edge/index.ts';
import { describe, describeNew, describeOne } from '../convert/index.ts';
import { endedError } from '../reach/index.ts';
import { overtaken } from './superseded.ts';
import { checkPossible, roomOf } from './feasibility.ts';
import { placeByVolumes } from './volumes.ts';

type Methods = Pick<
  ServiceImpl<typeof api.SandboxService>,
  'createSandbox' | 'getSandbox' | 'listSandboxes' | 'setDesiredState' | 'waitSandbox'
>;

/** What sandboxes there are and what is wanted of them. */
export function sandboxMethods(context: ApiContext): Methods {
  const { store, sessions, secrets } = context;

  const toWire = async (tables: Tables, row: SandboxRow): Promise<api.Sandbox> => await describeOne(tables, sessions, row);

  /** Running is a sandbox whose command has begun: its init plan was completed in this start (I-30). */
  async function isIn(row: SandboxRow, states: ReadonlySet<sandbox.SandboxState>): Promise<boolean> {
    const { state } = sandboxState(row);
    if (!states.has(sandboxStates.value(state))) return false;
    if (state !== 'running') return true;
    const init = (await store.views.get([row.id])).get(row.id)?.init;
    return init?.state === 'completed' && init.startCount === currentStart(row);
  }

  return {
    async createSandbox(request, { values }) {
      const { spec } = request;
      if (spec === undefined) throw new DroverError('invalid-argument', 'the request has no spec', { hint: 'give at least an image' });
      const parsed = parseSandboxSpec(spec);
      checkSecrets(spec, request.secrets);
      if (spec.setup !== undefined) parseSetup(spec.setup, new Set(spec.secrets.map((secret) => secret.name)));
      const labels = parseLabels(request.labels);
      const project = parseProject(request.project);
      const name = request.name === '' ? makeUpName() : parseName(request.name);
      const id = newSandboxId();
      const sealed = request.secrets.map((secret) => ({ name: secret.name, sealed: secrets.seal(id, secret.name, secret.value) }));
      const draft = { id, project, name, spec, labels, request: roomOf(parsed), secrets: sealed };
      // What is remembered of the request (L-20) must not help to guess a secret.
      const asked = request.secrets.length === 0 ? request : clone(api.CreateSandboxRequestSchema, request);
      for (const secret of asked.secrets) secret.value = new Uint8Array(secrets.digest(secret.value));
      return await once(store, values, api.SandboxService.method.createSandbox, asked, async (tables) => {
        const { volumes, host } = await placeByVolumes(tables, parsed);
        spec.host = host;
        const { hosts, place } = await checkPossible(tables.hosts, { ...parsed, host }, draft.request);
        const created = await tables.sandboxes.create(draft, place);
        await tables.volumes.use(volumes, id);
        // Another transaction took the room: the choice is made again.
        const lostRace = typeof place === 'string' && created.hostId === undefined;
        const row = lostRace ? await placeSandbox(tables, created) : created;
        return await describeNew(tables, sessions, row, hosts);
      });
    },

    async getSandbox(request) {
      return await toWire(store, await store.sandboxes.find(request.sandbox));
    },

    async listSandboxes(request) {
      const after = parsePageToken(request.pageToken);
      const size = Math.min(request.pageSize || defaultPageSize, maxPageSize);
      const host = request.host === '' ? undefined : await store.hosts.find(request.host);
      const rows = await store.sandboxes.list({
        ...(request.project === '' ? {} : { project: request.project }),
        labels: parseLabels(request.labels),
        ...(host === undefined ? {} : { hostId: host.id }),
        includeDeleted: request.includeDeleted,
        ...(after === undefined ? {} : { after }),
        // One more than asked for tells whether another page follows.
        limit: size + 1,
      });
      const page = rows.slice(0, size);
      return create(api.ListSandboxesResponseSchema, {
        sandboxes: await describe(store, sessions, page),
        nextPageToken: rows.length > size ? pageTokenOf(page.at(-1)) : '',
      });
    },

    async setDesiredState(request, { values }) {
      const desired = desiredStates.name(request.desiredState);
      if (desired === undefined) {
        throw new DroverError('invalid-argument', 'the request names no desired state', {
          hint: 'use running, stopped, paused or deleted',
        });
      }
      parseStopGraceMs(request.graceMs);
      return await once(store, values, api.SandboxService.method.setDesiredState, request, async (tables) => {
        const found = await tables.sandboxes.find(request.sandbox);
        // The grace of an earlier stop, or of a kill, is not this one's.
        const graceMs = request.graceMs || found.spec.stopGraceMs;
        const row = await tables.sandboxes.setDesired(found.id, desired, { graceMs, by: callerOf(values).name });
        return await toWire(tables, desired === 'running' ? await placeSandbox(tables, row) : row);
      });
    },

    async waitSandbox(request, { signal }: HandlerContext) {
      const wanted = new Set(request.states);
      if (wanted.size === 0 || wanted.has(sandbox.SandboxState.UNSPECIFIED)) {
        throw new DroverError('invalid-argument', 'the request names no state to wait for', {
          hint: 'for instance running, or stopped and failed',
        });
      }
      const found = await store.sandboxes.find(request.sandbox);
      const { id } = found;
      const generation = Number(request.generation) || found.generation;
      const timeout =
        request.timeoutMs > 0n ? AbortSignal.timeout(Number(request.timeoutMs > maxTimerMs ? maxTimerMs : request.timeoutMs)) : undefined;
      const either = timeout === undefined ? signal : AbortSignal.any([signal, timeout]);
      try {
        const row = await context.feed.until(
          id,
          async () => {
            const now = await store.sandboxes.get(id);
            if (now === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id} any more`);
            if (await isIn(now, wanted)) return now;
            const why = whyNever(now, wanted) ?? overtaken(now, wanted, generation);
            if (why !== undefined) throw why;
            return undefined;
          },
          either,
        );
        return await toWire(store, row);
      } catch (error) {
        if (timeout?.aborted === true && !signal.aborted && error === timeout.reason) {
          const now = await store.sandboxes.get(id);
          throw new DroverError(
            'timed-out',
            `the sandbox is still ${now === undefined ? 'gone' : sandboxState(now).state} after ${request.timeoutMs} ms`,
            {
              hint: (now === undefined ? '' : sandboxState(now).message) || 'wait longer, or look at `drover events`',
            },
          );
        }
        throw error;
      }
    },
  };
}

/** A place in the order of creation. It stands by itself: its sandbox may be gone when the next page is asked for. */
function pageTokenOf(row: SandboxRow | undefined): string {
  return row === undefined ? '' : `${row.createdAt}.${row.id}`;
}

function parsePageToken(token: string): SandboxFilter['after'] {
  if (token === '') return undefined;
  const dot = token.indexOf('.');
  const [createdAt, id] = [token.slice(0, dot), token.slice(dot + 1)];
  if (/^\d{1,15}$/.test(createdAt) && isSandboxId(id)) return { createdAt: Number(createdAt), id };
  throw new DroverError('invalid-argument', 'this is not a page token', { hint: 'give the next_page_token of the page before' });
}

/** The longest that a timer can be told, ms (setTimeout takes 31 bits). */
const maxTimerMs = 2n ** 31n - 1n;

/** Why a sandbox in its present state comes to none of the wanted ones unless a person does something; undefined when it may. */
function whyNever(row: SandboxRow, wanted: ReadonlySet<sandbox.SandboxState>): DroverError | undefined {
  const { state } = sandboxState(row);
  const among = (...names: readonly SandboxStateName[]): boolean => names.some((name) => wanted.has(sandboxStates.value(name)));
  switch (state) {
    case 'deleted':
      return new DroverError('sandbox-not-found', `sandbox ${labelOf(row)} was deleted`);
    case 'deleting':
      return among('deleted') ? undefined : new DroverError('failed-precondition', `sandbox ${labelOf(row)} is being deleted`);
    case 'failed':
    case 'stopped':
      // Somebody may still delete it; nothing else happens to it by itself.
      return among('deleting', 'deleted') ? undefined : endedError(row);
    case 'pending':
    case 'scheduled':
    case 'preparing':
    case 'starting':
    case 'running':
    case 'paused':
    case 'stopping':
    case 'lost':
      break;
  }
  return undefined;
}
