import { create } from '@bufbuild/protobuf';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import { DroverError, isSandboxId, makeUpName, newSandboxId, type HostId } from '@drover/foundation';
import { api, sandbox } from '@drover/protocol';
import { defaultPageSize, maxPageSize, maxStopGraceMs } from '../limits.ts';
import { sandboxState } from '../store/index.ts';
import type { SandboxRow, SandboxStateName } from '../store/store.ts';
import type { ApiContext } from './context.ts';
import { desiredStateOf, sandboxStates, sandboxToWire } from './convert.ts';
import { endedError, labelOf } from './ended.ts';
import { once } from './idempotency.ts';
import { checkSpec, parseIdentity, parseLabels, requestOf } from './parse.ts';
import { checkPossible } from './possible.ts';

type Methods = Pick<
  ServiceImpl<typeof api.SandboxService>,
  'createSandbox' | 'getSandbox' | 'listSandboxes' | 'setDesiredState' | 'waitSandbox'
>;

/** What sandboxes there are and what is wanted of them. */
export function sandboxMethods(context: ApiContext): Methods {
  const { store, sessions } = context;

  async function toWire(row: SandboxRow): Promise<api.Sandbox> {
    const host = row.hostId === undefined ? undefined : await store.hosts.get(row.hostId);
    return sandboxToWire(row, host?.name ?? '', sessions.status(row.id));
  }

  async function createOne(request: api.CreateSandboxRequest): Promise<api.Sandbox> {
    const { spec } = request;
    if (spec === undefined) throw new DroverError('invalid-argument', 'the request has no spec', { hint: 'give at least an image' });
    checkSpec(spec);
    const labels = parseLabels(request.labels);
    const { project, name } = parseIdentity(request.project, request.name === '' ? makeUpName() : request.name);
    const room = requestOf(spec);
    await checkPossible(store.hosts, spec, room);
    const row = await store.sandboxes.create({ id: newSandboxId(), project, name, spec, labels, request: room });
    // From here on the sandbox exists: what placement cannot do now it does later, so nothing below fails the call.
    const placed = await context.placement.placeNow(row.id).catch((error: unknown) => {
      context.logger.warn({ err: error, sandbox: row.id }, 'placement failed and is tried again');
      return row;
    });
    if (placed.hostId !== undefined) context.reconciler.poke(placed.hostId);
    return await toWire(placed);
  }

  return {
    async createSandbox(request, { values }) {
      return await once(store.idempotency, values, api.SandboxService.method.createSandbox, request, async () => await createOne(request));
    },

    async getSandbox(request) {
      return await toWire(await store.sandboxes.find(request.sandbox));
    },

    async listSandboxes(request) {
      if (request.pageToken !== '' && !isSandboxId(request.pageToken)) {
        throw new DroverError('invalid-argument', 'this is not a page token', { hint: 'give the next_page_token of the page before' });
      }
      const size = Math.min(request.pageSize || defaultPageSize, maxPageSize);
      const host = request.host === '' ? undefined : await store.hosts.find(request.host);
      const rows = await store.sandboxes.list({
        ...(request.project === '' ? {} : { project: request.project }),
        labels: parseLabels(request.labels),
        ...(host === undefined ? {} : { hostId: host.id }),
        includeDeleted: request.includeDeleted,
        ...(request.pageToken === '' ? {} : { after: request.pageToken }),
        // One more than asked for tells whether another page follows.
        limit: size + 1,
      });
      const page = rows.slice(0, size);
      const names = new Map<HostId, string>();
      if (page.some((row) => row.hostId !== undefined)) {
        for (const { id, name } of await store.hosts.list({ includeRemoved: true })) names.set(id, name);
      }
      return create(api.ListSandboxesResponseSchema, {
        sandboxes: page.map((row) =>
          sandboxToWire(row, row.hostId === undefined ? '' : (names.get(row.hostId) ?? ''), sessions.status(row.id)),
        ),
        nextPageToken: rows.length > size ? (page.at(-1)?.id ?? '') : '',
      });
    },

    async setDesiredState(request, { values }) {
      const desired = desiredStateOf(request.desiredState);
      if (desired === undefined) {
        throw new DroverError('invalid-argument', 'the request names no desired state', {
          hint: 'use running, stopped, paused or deleted',
        });
      }
      if (request.graceMs > maxStopGraceMs) {
        throw new DroverError('invalid-argument', `a grace of ${request.graceMs} ms is too long`, {
          hint: `use at most ${maxStopGraceMs} ms`,
        });
      }
      return await once(store.idempotency, values, api.SandboxService.method.setDesiredState, request, async () => {
        const found = await store.sandboxes.find(request.sandbox);
        const row = await store.sandboxes.setDesired(found.id, desired, request.graceMs > 0 ? { graceMs: request.graceMs } : {});
        const now = desired === 'running' ? await context.placement.placeNow(row.id) : row;
        if (now.hostId !== undefined) context.reconciler.poke(now.hostId);
        return await toWire(now);
      });
    },

    async waitSandbox(request, { signal }: HandlerContext) {
      const wanted = new Set(request.states);
      if (wanted.size === 0 || wanted.has(sandbox.SandboxState.UNSPECIFIED)) {
        throw new DroverError('invalid-argument', 'the request names no state to wait for', {
          hint: 'for instance running, or stopped and failed',
        });
      }
      const { id } = await store.sandboxes.find(request.sandbox);
      const timeout =
        request.timeoutMs > 0n ? AbortSignal.timeout(Number(request.timeoutMs > maxTimerMs ? maxTimerMs : request.timeoutMs)) : undefined;
      const either = timeout === undefined ? signal : AbortSignal.any([signal, timeout]);
      try {
        const row = await context.wakes.until(
          id,
          async () => {
            const now = await store.sandboxes.get(id);
            if (now === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id} any more`);
            if (wanted.has(sandboxStates[sandboxState(now).state])) return now;
            const why = whyNever(now, wanted);
            if (why !== undefined) throw why;
            return undefined;
          },
          either,
        );
        return await toWire(row);
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

/** The longest that a timer can be told, ms (setTimeout takes 31 bits). */
const maxTimerMs = 2n ** 31n - 1n;

/** Why a sandbox in its present state comes to none of the wanted ones unless a person does something; undefined when it may. */
function whyNever(row: SandboxRow, wanted: ReadonlySet<sandbox.SandboxState>): DroverError | undefined {
  const { state } = sandboxState(row);
  const among = (...names: readonly SandboxStateName[]): boolean => names.some((name) => wanted.has(sandboxStates[name]));
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
