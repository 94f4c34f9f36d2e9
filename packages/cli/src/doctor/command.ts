import { join } from 'node:path';
import { DroverError } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { link } from '@drover/protocol';
import type { Cli } from '../cli.ts';
import { loadContext } from '../context/index.ts';
import { defaultDataDirectory, loadHostSettings, parseListen, runningServer } from '../settings/index.ts';
import { runChecks, type Finding } from './checks.ts';

const levels: Readonly<Record<number, Finding['level']>> = {
  [link.Finding_Level.OK]: 'ok',
  [link.Finding_Level.WARNING]: 'warning',
  [link.Finding_Level.PROBLEM]: 'problem',
};

interface DoctorFlags {
  readonly host?: string;
  readonly data?: string;
  readonly listen?: string;
}

/** Returns 1 if there is a problem. */
export default async function doctor(cli: Cli, _: readonly [], flags: DoctorFlags): Promise<number> {
  const findings = flags.host === undefined ? await checkMachine(cli, flags) : await checkHost(cli, flags.host);
  if (cli.out.json) cli.out.object(findings);
  else for (const finding of findings) printFinding(cli, finding);
  return findings.some(({ level }) => level === 'problem') ? 1 : 0;
}

const marks: Readonly<Record<Finding['level'], string>> = { ok: 'ok      ', warning: 'warning ', problem: 'problem ' };

function printFinding(cli: Cli, { name, level, message, hint }: Finding): void {
  cli.out.line(`${marks[level]} ${name}: ${message}`);
  if (level !== 'ok' && hint !== '') cli.out.line(`          hint: ${hint}`);
}

async function checkMachine(cli: Cli, flags: DoctorFlags): Promise<Finding[]> {
  const controlPlane = await checkControlPlane(cli);
  const running = await runningUp(cli);
  const data = flags.data ?? running?.data ?? defaultDataDirectory(cli.env);
  const findings = await runChecks({
    data,
    ...parseListen(flags.listen ?? running?.address ?? '127.0.0.1:7443'),
    ...(controlPlane.level === 'ok' && { running: new URL((await loadContext(cli.env, cli.connection)).server).host }),
  });
  const known = new Set(findings.map(({ name }) => name));
  // The runtime's checks write files in the data directory.
  const usable = !findings.some(({ name, level }) => name === 'disk' && level === 'problem');
  const deeper = usable ? await checkRuntime(join(data, 'host')) : [];
  return [...findings, ...deeper.filter(({ name }) => !known.has(name)), controlPlane];
}

/** The running `up` on this machine that created the chosen context. Its own settings are the ones to check. */
async function runningUp(cli: Cli): Promise<{ readonly data: string; readonly address: string } | undefined> {
  try {
    const { data } = await loadContext(cli.env, cli.connection);
    const server = data === undefined ? undefined : await runningServer(data);
    return data === undefined || server === undefined ? undefined : { data, address: new URL(server).host };
  } catch {
    // Without a readable context, the defaults are checked.
    return undefined;
  }
}

/** Runs the runtime's own checks. If they fail, the failure is a warning. */
async function checkRuntime(stateDirectory: string): Promise<Finding[]> {
  try {
    const { agentDoctor } = await import('@drover/agent');
    const { pool } = await loadHostSettings(stateDirectory);
    const findings = await agentDoctor({ stateDirectory, logger: silentLogger, ...(pool !== undefined && { pool }) });
    return findings.map(({ level, subject, message, hint }) => ({ name: subject, level, message, hint }));
  } catch (thrown) {
    const { message, hint } = DroverError.from(thrown);
    return [{ name: 'state directory', level: 'warning', message, hint: hint ?? 'choose another with --data' }];
  }
}

async function checkHost(cli: Cli, host: string): Promise<Finding[]> {
  const client = await cli.connect();
  const { findings } = await client.hosts.diagnose(host, cli.signal);
  return findings.map(({ level, subject, message, hint }) => ({ name: subject, level: levels[level] ?? 'warning', message, hint }));
}

/** Checks the control plane. A control plane that is not running is not a problem of this machine. */
async function checkControlPlane(cli: Cli): Promise<Finding> {
  const name = 'control plane';
  try {
    const { version } = await (await cli.connect()).version(AbortSignal.any([cli.signal, AbortSignal.timeout(5_000)]));
    return { name, level: 'ok', message: `version ${version} responds`, hint: '' };
  } catch (thrown) {
    const error = DroverError.from(thrown);
    const { code } = error;
    const hint = error.hint ?? 'start it with ./drover up';
    return {
      name,
      level: 'warning',
      message: code === 'failed-precondition' || code === 'control-plane-unreachable' ? 'it is not running' : error.message,
      hint,
    };
  }
}
