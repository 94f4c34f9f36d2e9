import { clone, create } from '@bufbuild/protobuf';
import type { ContextValues, ServiceImpl } from '@connectrpc/connect';
import { DroverError, isSandboxId, makeUpName, newSandboxId, parseName, parseProject } from '@drover/foundation';
import { api, desiredStates } from '@drover/protocol';
import { parseLabels } from '@drover/spec';
import { parseSandboxSpec, parseStopGraceMs } from '@drover/spec/sandbox';
import { parseSetup } from '@drover/spec/setup';
import { defaultPageSize, maxPageSize } from '../../limits.ts';
import type { SandboxRow } from '../../model/index.ts';
import { placeSandbox } from '../../placement/index.ts';
import { checkSecrets } from '../../secrets/index.ts';
import type { SandboxFilter } from '../../store/index.ts';
import { describe, describeNew, describeOne } from '../convert/index.ts';
import { callerOf, once, type ApiContext } from '../edge/index.ts';
import { checkFeasible, roomOf } from './feasibility.ts';
import { placeByVolumes } from './volume-placement.ts';

type Methods = Pick<ServiceImpl<typeof api.SandboxService>, 'createSandbox' | 'getSandbox' | 'listSandboxes' | 'setDesiredState'>;
const methods = api.SandboxService.method;

/** The sandboxes and their desired states. */
export function sandboxMethods(context: ApiContext): Methods {
  const { store, sessions } = context;
  return {
    createSandbox: async (request, { values }) => await createSandbox(context, request, values),

    async getSandbox(request) {
      return await describeOne(store, sessions, await store.sandboxes.find(request.sandbox));
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
        // One more row than requested shows whether another page follows.
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
      return await once(store, values, methods.setDesiredState, request, async (tables) => {
        const found = await tables.sandboxes.find(request.sandbox);
        // The grace of an earlier stop or kill does not apply to this one.
        const graceMs = request.graceMs || found.spec.stopGraceMs;
        const row = await tables.sandboxes.setDesired(found.id, desired, { graceMs, by: callerOf(values).name });
        return await describeOne(tables, sessions, desired === 'running' ? await placeSandbox(tables, row) : row);
      });
    },
  };
}

async function createSandbox(context: ApiContext, request: api.CreateSandboxRequest, values: ContextValues): Promise<api.Sandbox> {
  const { store, sessions, secrets } = context;
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
  // The stored request (L-20) must not help to guess a secret.
  const stored = request.secrets.length === 0 ? request : clone(api.CreateSandboxRequestSchema, request);
  for (const secret of stored.secrets) secret.value = new Uint8Array(secrets.digest(secret.value));
  return await once(store, values, methods.createSandbox, stored, async (tables) => {
    const { volumes, host } = await placeByVolumes(tables, parsed);
    spec.host = host;
    const { hosts, place } = await checkFeasible(tables.hosts, { ...parsed, host }, draft.request);
    const created = await tables.sandboxes.create(draft, place);
    await tables.volumes.use(volumes, id);
    // If another transaction took the room, the host is chosen again.
    const lostRace = typeof place === 'string' && created.hostId === undefined;
    const row = lostRace ? await placeSandbox(tables, created) : created;
    return await describeNew(tables, sessions, row, hosts);
  });
}

/** A place in the order of creation. It does not refer to a row: the sandbox may be deleted before the next page is requested. */
function pageTokenOf(row: SandboxRow | undefined): string {
  return row === undefined ? '' : `${row.createdAt}.${row.id}`;
}

function parsePageToken(token: string): SandboxFilter['after'] {
  if (token === '') return undefined;
  const dot = token.indexOf('.');
  const [createdAt, id] = [token.slice(0, dot), token.slice(dot + 1)];
  if (/^\d{1,15}$/.test(createdAt) && isSandboxId(id)) return { createdAt: Number(createdAt), id };
  throw new DroverError('invalid-argument', 'this is not a page token', { hint: 'give the next_page_token of the previous page' });
}
