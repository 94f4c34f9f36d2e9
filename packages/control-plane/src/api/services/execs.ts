import { create } from '@bufbuild/protobuf';
import type { CallOptions, ServiceImpl } from '@connectrpc/connect';
import { withDeadline } from '@drover/foundation';
import { api, type init } from '@drover/protocol';
import { parseSignal, signalName } from '@drover/spec';
import { initCallMs } from '../../limits.ts';
import type { InitClient } from '../../sessions/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { refusePaused, brokenCallError, sessionClient, silentError } from '../reach/index.ts';

/** Lists and ends the execs of a sandbox; `exec.ts` carries their streams. */
export function execsMethods(context: ApiContext): Pick<ServiceImpl<typeof api.SandboxService>, 'listExecs' | 'killExec'> {
  /** One call to the sandbox's init. @throws {DroverError} timed-out when init does not respond; host-unavailable (L-15) */
  async function ask<T>(sandbox: string, signal: AbortSignal, call: (client: InitClient, options: CallOptions) => Promise<T>): Promise<T> {
    const row = await context.store.sandboxes.find(sandbox);
    refusePaused(row);
    const client = await sessionClient(context, row, signal);
    const ended = new AbortController();
    try {
      const response = call(client, { signal: AbortSignal.any([signal, ended.signal]) });
      return await withDeadline(response, initCallMs, context.clock, (ms) => silentError(row, 'request', ms));
    } catch (thrown) {
      throw await brokenCallError(context, row, thrown);
    } finally {
      ended.abort();
    }
  }

  return {
    async listExecs(request, { signal }) {
      const { execs } = await ask(request.sandbox, signal, async (client, options) => await client.listExecs({}, options));
      return create(api.ListExecsResponseSchema, { execs: execs.map(toWire) });
    },

    async killExec(request, { signal }) {
      const name = signalName(parseSignal(request.signal === '' ? 'SIGTERM' : request.signal));
      const wanted = { execId: request.execId, signal: name };
      const { signalled } = await ask(request.sandbox, signal, async (client, options) => await client.signalExec(wanted, options));
      return create(api.KillExecResponseSchema, { signalled });
    },
  };
}

function toWire({ execId, argv, user, pid, terminal, startedAt, clients, exit, lingerMs }: init.ExecInfo): api.ExecInfo {
  const info = create(api.ExecInfoSchema, { execId, argv, user, pid, terminal, clients, lingerSeconds: Math.round(lingerMs / 1000) });
  if (startedAt !== undefined) info.startedAt = startedAt;
  if (exit === undefined) return info;
  info.exit = create(api.ExecExitSchema, { code: exit.code, signal: exit.signal, outOfMemory: exit.outOfMemory });
  if (exit.at !== undefined) info.finishedAt = exit.at;
  return info;
}
