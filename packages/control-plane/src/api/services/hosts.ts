import { createHmac } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { ContextValues, ServiceImpl } from '@connectrpc/connect';
import { DroverError, type HostId } from '@drover/foundation';
import { formatJoinToken, hashSecret, newSecret } from '@drover/pki';
import { api, link } from '@drover/protocol';
import { maxJoinTtlSeconds, maxJoinUses, parseLabels } from '@drover/spec';
import { defaultJoinTtlSeconds } from '../../limits.ts';
import { callerOf, type ApiContext, once } from '../edge/index.ts';
import { drainHost } from '../../reconcile/index.ts';
import { hostState } from '../../model/index.ts';
import { hostToWire } from '../convert/index.ts';
import { callHost, hostDownError } from '../reach/index.ts';

const methods = api.HostService.method;

export function hostService(context: ApiContext): ServiceImpl<typeof api.HostService> {
  const { store, hub } = context;

  return {
    async listHosts(request) {
      const rows = await store.hosts.list({ includeRemoved: request.includeRemoved });
      return create(api.ListHostsResponseSchema, { hosts: rows.map(hostToWire) });
    },

    async getHost(request) {
      return hostToWire(await store.hosts.find(request.host));
    },

    createJoinToken: async (request, { values }) => await createJoinToken(context, request, values),

    async setHostScheduling(request, { values }) {
      return await once(store, values, methods.setHostScheduling, request, async ({ hosts }) => {
        const host = await hosts.find(request.host);
        return hostToWire(await hosts.setScheduling(host.id, request.cordoned ? 'cordoned' : 'open'));
      });
    },

    async *drainHost(request, { signal }) {
      const host = await store.hosts.find(request.host);
      const { clock, placement } = context;
      const steps = drainHost({ store, placement, clock, hostId: host.id, stop: request.stop }, signal);
      for await (const { total, remaining, message, done } of steps) {
        yield create(api.DrainProgressSchema, { total, remaining, message, done });
      }
    },

    async removeHost(request, { values }) {
      let removed: HostId | undefined;
      const response = await once(store, values, methods.removeHost, request, async ({ hosts }) => {
        const host = await hosts.find(request.host);
        await hosts.remove(host.id, { force: request.force });
        removed = host.id;
        return create(api.RemoveHostResponseSchema);
      });
      // L-4. If this process ends first, the stream ends with it. The audit of another replica ends a stream there.
      if (removed !== undefined) hub.disconnect(removed, link.GoAway_Reason.REMOVED, 'the host was removed');
      return response;
    },

    async diagnoseHost(request, { signal }) {
      const host = await store.hosts.find(request.host);
      if (hostState(host) === 'down') throw hostDownError(host);
      const operation = { case: 'collectDiagnostics', value: create(link.CollectDiagnosticsSchema) } as const;
      return await callHost(context, host, operation, 'diagnostics', signal);
    },
  };
}

async function createJoinToken(context: ApiContext, request: api.CreateJoinTokenRequest, values: ContextValues): Promise<api.JoinToken> {
  const { store, clock, ca, system } = context;
  const labels = parseLabels(request.labels);
  const ttlSeconds = Number(request.ttlSeconds) || defaultJoinTtlSeconds;
  const uses = request.uses || 1;
  if (ttlSeconds > maxJoinTtlSeconds || uses > maxJoinUses) {
    throw new DroverError('invalid-argument', 'the token would live too long or have too many uses', {
      hint: `use at most ${maxJoinTtlSeconds} s and ${maxJoinUses} uses`,
    });
  }
  // A repeated call must return the same token, and the store has only hashes: with a key, the secret is derived from the caller's own
  // token, which the store does not have.
  const { token } = callerOf(values);
  const key = request.idempotencyKey;
  const secret = key === '' ? newSecret() : createHmac('sha256', token).update(`join-token\0${key}`).digest('base64url');
  const response = await once(store, values, methods.createJoinToken, request, async ({ tokens }) => {
    const expiresAt = clock.now() + ttlSeconds * 1000;
    await tokens.createJoin({ hash: hashSecret(secret), expiresAt, uses, labels });
    return create(api.JoinTokenSchema, { expiresAt: timestampFromMs(expiresAt), uses });
  });
  response.token = formatJoinToken({ caFingerprint: ca.fingerprint, secret });
  response.command = `drover agent join ${system.apiAddress} --token ${response.token}`;
  return response;
}
