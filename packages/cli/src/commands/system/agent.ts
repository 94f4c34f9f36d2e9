import { hostname } from 'node:os';
import { join as joinPath, resolve } from 'node:path';
import { agentDoctor, refuseProblems, runAgent } from '@drover/agent';
import { checkOtherControlPlane, joinHost } from '@drover/agent/link';
import { DroverError, prepareDirectory } from '@drover/foundation';
import { createLogger, silentLogger } from '@drover/foundation/log';
import { connectToSupervisor } from '@drover/supervisor';
import type { Cli } from '../../cli.ts';
import { parseServer } from '../../context/index.ts';
import { checkHostFlags, defaultDataDirectory, type HostFlags, loadHostSettings, saveHostSettings } from '../../settings/index.ts';
import { checkMachine, hostChecks } from '../../doctor/index.ts';

interface AgentFlags extends HostFlags {
  readonly state?: string;
}

const stateOf = (cli: Cli, flags: AgentFlags): string => resolve(flags.state ?? joinPath(defaultDataDirectory(cli.env), 'host'));

/** Runs the agent of a joined host until SIGINT or SIGTERM. Its sandboxes keep running. */
export default async function agent(cli: Cli, _: readonly [], flags: AgentFlags): Promise<void> {
  const stateDirectory = stateOf(cli, flags);
  await prepareDirectory(stateDirectory, 'state directory', '--state', 0o711);
  await saveHostSettings(stateDirectory, flags);
  const settings = await loadHostSettings(stateDirectory);
  await runAgent({
    stateDirectory,
    ...settings,
    logger: createLogger({ name: 'agent' }),
    signal: AbortSignal.any([cli.signal, connectToSupervisor(cli.env)]),
  });
}

interface JoinFlags extends AgentFlags {
  /** False with --no-run. */
  readonly run?: boolean;
}

/** Checks the agent's own requirements. @throws {DroverError} missing-privilege, missing-component */
async function checkAgent(options: Parameters<typeof agentDoctor>[0]): Promise<void> {
  refuseProblems(await agentDoctor(options), options.logger);
}

const hostOptions = ({ pool, runtimeProgram }: HostFlags): { readonly pool?: string; readonly runtimeProgram?: string } => ({
  ...(pool !== undefined && { pool }),
  ...(runtimeProgram !== undefined && { runtimeProgram }),
});

/** L-1, L-2: exchanges the token for this host's certificate, then runs the agent. */
export async function join(cli: Cli, [url]: readonly [string], flags: JoinFlags): Promise<void> {
  const { token } = cli.connection;
  if (token === undefined) {
    throw new DroverError('invalid-argument', 'no join token was given', {
      hint: 'create one with drover host token, and pass it with --token',
    });
  }
  await checkHostFlags(flags);
  const server = parseServer(url);
  const stateDir = stateOf(cli, flags);
  await checkOtherControlPlane(stateDir, token);
  await prepareDirectory(stateDir, 'state directory', '--state', 0o711);
  // Check the machine first: the token may admit a single host.
  const settings = { data: stateDir, host: '', port: 0 };
  await checkMachine(cli, settings, ['Node.js', 'disk', 'clock', ...hostChecks]);
  await checkAgent({ stateDirectory: stateDir, logger: silentLogger, ...hostOptions(flags) });
  const name = flags.name ?? hostname();
  const { hostId, hostName } = await joinHost({ url: server, token, stateDir, hostname: name, signal: cli.signal });
  if (hostName !== '' && hostName !== name) {
    cli.out.note(`another host is named ${name}: this one is ${hostName}`, 'give it a name of its own with --name, also later');
  }
  await saveHostSettings(stateDir, flags);
  if (cli.out.json) cli.out.record({ hostId, server, state: stateDir });
  else cli.out.line(`drover: joined ${server} as ${hostId}`);
  if (flags.run !== false) await agent(cli, [], flags);
}
