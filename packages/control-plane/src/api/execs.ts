import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { parseSignal, signalName } from '@drover/foundation';
import { api, type init } from '@drover/protocol';
import { initCallMs } from '../limits.ts';
import type { ApiContext } from './context.ts';
import { refusePaused } from './ended.ts';

/** The execs of a sandbox as a person manages them; `exec.ts` carries their streams. */
export function execsMethods(context: ApiContext): Pick<ServiceImpl<typeof api.SandboxService>, 'listExecs' | 'killExec'> {
  const { store, sessions } = context;

  return {
    async listExecs(request, { signal }) {
      const row = await store.sandboxes.find(request.sandbox);
      refusePaused(row);
      const client = await sessions.client(row.id, signal);
      const { execs } = await client.listExecs({}, { signal, timeoutMs: initCallMs });
      return create(api.ListExecsResponseSchema, { execs: execs.map(toWire) });
    },

    async killExec(request, { signal }) {
      const number = parseSignal(request.signal === '' ? 'SIGTERM' : request.signal);
      const row = await store.sandboxes.find(request.sandbox);
      refusePaused(row);
      const client = await sessions.client(row.id, signal);
      const { signalled } = await client.signalExec(
        { execId: request.execId, signal: signalName(number) },
        { signal, timeoutMs: initCallMs },
      );
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
