import { timestampMs } from '@bufbuild/protobuf/wkt';
import { formatAge } from '@drover/foundation';
import { api } from '@drover/protocol';
import { parseSignal, signalName } from '@drover/spec';
import type { Cli } from '../../cli.ts';
import { type Column, messageJson } from '../../output/index.ts';

/** `drover exec ls SANDBOX` */
export async function ls(cli: Cli, [sandbox]: readonly [string]): Promise<void> {
  const client = await cli.connect();
  const execs = await client.sandboxes.execs(sandbox, cli.signal);
  cli.out.list(execs, (exec) => messageJson(api.ExecInfoSchema, exec), columns, `sandbox ${sandbox} has no execs`);
}

/** `drover exec kill SANDBOX ID` */
export async function kill(cli: Cli, [sandbox, id]: readonly [string, string], flags: { readonly signal?: string }): Promise<void> {
  const signal = signalName(parseSignal(flags.signal ?? 'SIGTERM'));
  const client = await cli.connect();
  const signalled = await client.sandboxes.killExec(sandbox, id, signal, cli.signal);
  if (cli.out.json) cli.out.object({ execId: id, signal, signalled });
  else if (signalled) cli.out.line(id);
  else cli.out.note(`exec ${id} has ended already`);
}

const columns: readonly Column<api.ExecInfo>[] = [
  { title: 'ID', value: ({ execId }) => execId },
  { title: 'STATE', value: stateOf },
  { title: 'PID', value: ({ pid, exit }) => (exit === undefined ? String(pid) : '') },
  { title: 'USER', value: ({ user }) => user },
  { title: 'CLIENTS', value: ({ clients }) => String(clients) },
  { title: 'AGE', value: ({ startedAt }) => (startedAt === undefined ? '' : formatAge(Date.now() - timestampMs(startedAt))) },
  { title: 'COMMAND', value: ({ argv }) => argv.join(' ') },
];

function stateOf({ exit }: api.ExecInfo): string {
  if (exit === undefined) return 'running';
  if (exit.outOfMemory) return 'ended (out of memory)';
  return `ended (${exit.signal === '' ? exit.code : exit.signal})`;
}
