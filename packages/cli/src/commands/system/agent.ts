import { hostname } from 'node:os';
import { join as joinPath, resolve } from 'node:path';
import { runAgent } from '@drover/agent';
import { joinHost } from '@drover/agent/link';
import { DroverError } from '@drover/foundation';
import { createLogger } from '@drover/foundation/log';
import type { Cli } from '../../cli.ts';
import { parseServer } from '../../context/context.ts';
import { checkHostFlags, loadHostSettings, saveHostSettings, type HostFlags } from '../../up/host-settings.ts';
import { whileParentLives } from '../../up/parent.ts';
import { defaultDataDirectory } from '../../up/settings.ts';

interface AgentFlags extends HostFlags {
  readonly state?: string;
}

const stateOf = (cli: Cli, flags: AgentFlags): string => resolve(flags.state ?? joinPath(defaultDataDirectory(cli.env), 'host'));

/** The host agent of a machine that has joined, until SIGINT or SIGTERM. Sandboxes run on. */
export default async function agent(cli: Cli, _: readonly [], flags: AgentFlags): Promise<void> {
  const stateDirectory = stateOf(cli, flags);
  await saveHostSettings(stateDirectory, flags);
  const settings = await loadHostSettings(stateDirectory);
  await runAgent({
    stateDirectory,
    ...settings,
    logger: createLogger({ name: 'agent' }),
    signal: AbortSignal.any([cli.signal, whileParentLives(cli.env)]),
  });
}

interface JoinFlags extends AgentFlags {
  /** False with --no-run. */
  readonly run?: boolean;
}

/** L-1, L-2: trades the token for this host's certificate, then runs the agent. A host that has joined already just runs. */
export async function join(cli: Cli, [url]: readonly [string], flags: JoinFlags): Promise<void> {
  const { token } = cli.connection;
  if (token === undefined) {
    throw new DroverError('invalid-argument', 'there is no join token', {
      hint: 'make one with drover host token, and give it with --token',
    });
  }
  await checkHostFlags(flags);
  const server = parseServer(url);
  const stateDir = stateOf(cli, flags);
  const { hostId } = await joinHost({ url: server, token, stateDir, hostname: flags.name ?? hostname(), signal: cli.signal });
  await saveHostSettings(stateDir, flags);
  if (cli.out.json) cli.out.record({ hostId, server, state: stateDir });
  else cli.out.line(`drover: joined ${server} as ${hostId}`);
  if (flags.run !== false) await agent(cli, [], flags);
}
