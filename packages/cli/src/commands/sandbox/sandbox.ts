import { DroverError, hasCode, parseProject } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { sandboxStateName, sandboxStateValue, type DroverClient, type SandboxStateName } from '@drover/sdk';
import { parseDurationMs } from '@drover/spec';
import type { Cli } from '../../cli.ts';
import { parseLabels } from '../../parse.ts';
import { createSandbox, removeInterrupted } from './create.ts';
import { details } from './details.ts';
import { planFailure } from './init-text.ts';
import { withProgress } from './progress.ts';
import { noteReconnects } from './reconnect.ts';
import { endText, listColumns, printSandbox, sandboxJson } from './show.ts';
import { createOptions, parseStopGrace, type SpecFlags } from './spec.ts';
import { sandboxLabel } from '../../output/index.ts';

export async function create(
  cli: Cli,
  [image, command]: readonly [string, readonly string[]],
  flags: SpecFlags & WaitFlags & { readonly tty?: boolean; readonly interactive?: boolean },
): Promise<void> {
  const options = await createOptions(image, command, flags, { terminal: flags.tty === true, stdin: flags.interactive === true });
  const client = await cli.connect();
  const stored = await createSandbox(cli, client, options);
  if (flags.wait === false) return printSandbox(cli, stored);
  try {
    printSandbox(cli, await waitUntilStarted(cli, client, stored));
  } catch (error) {
    if (cli.signal.aborted) await removeInterrupted(cli, client, stored.id);
    throw error;
  }
}

/**
 * Waits until the sandbox's command has started. A sandbox that fails to start is kept for inspection.
 * @throws {DroverError} why the start failed
 */
async function waitUntilStarted(cli: Cli, client: DroverClient, sandbox: api.Sandbox, progress = true): Promise<api.Sandbox> {
  const ready = client.sandboxes.waitReady(sandbox.id, {
    generation: sandbox.generation,
    onReconnect: noteReconnects(cli),
    signal: cli.signal,
  });
  try {
    return progress ? await withProgress(cli, client, sandbox.id, ready) : await ready;
  } catch (error) {
    if (cli.signal.aborted || hasCode(error, 'cancelled', 'control-plane-unreachable')) throw error;
    const seen = await client.sandboxes.get(sandbox.id).catch(() => undefined);
    throw (seen === undefined ? undefined : planFailure(seen, true)) ?? error;
  }
}

export interface ListFlags {
  readonly project?: string;
  readonly label?: readonly string[];
  readonly host?: string;
  readonly all?: boolean;
  readonly quiet?: boolean;
}

export async function ls(cli: Cli, _: readonly [], flags: ListFlags): Promise<void> {
  if (flags.quiet === true && cli.out.json) {
    throw new DroverError('invalid-argument', '--quiet prints names, and -o json objects: they cannot be given together', {
      hint: 'leave out one of the two',
    });
  }
  const filter = {
    ...(flags.project !== undefined && { project: parseProject(flags.project) }),
    ...(flags.host !== undefined && { host: flags.host }),
    labels: parseLabels(flags.label ?? []),
    includeDeleted: flags.all === true,
  };
  const client = await cli.connect();
  const sandboxes = await client.sandboxes.list({ ...filter, signal: cli.signal });
  if (flags.quiet === true) {
    for (const sandbox of sandboxes) cli.out.line(sandboxLabel(sandbox));
  } else {
    cli.out.list(sandboxes, sandboxJson, listColumns, 'no sandboxes; try: drover run host -- sh');
  }
}

export async function get(cli: Cli, [reference]: readonly [string]): Promise<void> {
  const client = await cli.connect();
  const sandbox = await client.sandboxes.get(reference, cli.signal);
  if (cli.out.json) cli.out.object(sandboxJson(sandbox));
  else for (const line of details(sandbox)) cli.out.line(line);
}

type Change = (client: DroverClient, reference: string, signal: AbortSignal) => Promise<api.Sandbox>;
/** What a command waits for after a change: one of these states, or the start of the sandbox's command. */
type Goal = readonly SandboxStateName[] | 'started';

/** Changes every sandbox and waits for its goal, if any. A failure is reported and does not stop the others. */
async function each(cli: Cli, references: readonly string[], change: Change, goal: Goal | undefined): Promise<number> {
  const client = await cli.connect();
  let status = 0;
  const done: api.Sandbox[] = [];
  await Promise.all(
    references.map(async (reference) => {
      try {
        let sandbox = await change(client, reference, cli.signal);
        if (goal === 'started') sandbox = await waitUntilStarted(cli, client, sandbox, references.length === 1);
        else if (goal !== undefined && !goal.includes(sandboxStateName(sandbox.state) as SandboxStateName)) {
          const waiting = client.sandboxes.waitFor(sandbox.id, goal, { generation: sandbox.generation, signal: cli.signal });
          sandbox = references.length === 1 ? await withProgress(cli, client, sandbox.id, waiting) : await waiting;
        }
        done.push(sandbox);
        if (!cli.out.json) cli.out.line(sandboxLabel(sandbox));
      } catch (thrown) {
        const error = DroverError.from(thrown);
        if (references.length === 1 || cli.signal.aborted) throw error;
        cli.out.error(error);
        status = error.exitCode;
      }
    }),
  );
  // JSON is an array for one name too, so that programs need not distinguish.
  if (cli.out.json) cli.out.object(done.map(sandboxJson));
  return status;
}

export interface WaitFlags {
  /** False with --no-wait. */
  readonly wait?: boolean;
}

const unless = (flags: WaitFlags, goal: Goal): Goal | undefined => (flags.wait === false ? undefined : goal);

export function start(cli: Cli, [references]: readonly [readonly string[]], flags: WaitFlags): Promise<number> {
  return each(cli, references, (client, reference, signal) => client.sandboxes.start(reference, signal), unless(flags, 'started'));
}

export interface StopFlags extends WaitFlags {
  readonly grace?: string;
}

const grace = (flags: StopFlags): { graceMs?: number } =>
  flags.grace === undefined ? {} : { graceMs: parseStopGrace('--grace', flags.grace) };

export function stop(cli: Cli, [references]: readonly [readonly string[]], flags: StopFlags): Promise<number> {
  const options = grace(flags);
  return each(
    cli,
    references,
    (client, reference, signal) => client.sandboxes.stop(reference, { ...options, signal }),
    unless(flags, ['stopped', 'failed', 'deleting', 'deleted']),
  );
}

/** As `stop`, without a grace period. */
export function kill(cli: Cli, [references]: readonly [readonly string[]], flags: WaitFlags): Promise<number> {
  return stop(cli, [references], { ...flags, grace: '0s' });
}

export function pause(cli: Cli, [references]: readonly [readonly string[]], flags: WaitFlags): Promise<number> {
  return each(cli, references, (client, reference, signal) => client.sandboxes.pause(reference, signal), unless(flags, ['paused']));
}

export function resume(cli: Cli, [references]: readonly [readonly string[]], flags: WaitFlags): Promise<number> {
  return each(cli, references, (client, reference, signal) => client.sandboxes.resume(reference, signal), unless(flags, ['running']));
}

export function rm(cli: Cli, [references]: readonly [readonly string[]], flags: StopFlags & { readonly force?: boolean }): Promise<number> {
  const options = flags.force === true ? { graceMs: 1 } : grace(flags);
  return each(
    cli,
    references,
    async (client, reference, signal) => {
      // Only --force or --grace may end a running sandbox.
      const state = sandboxStateName((await client.sandboxes.get(reference, signal)).state);
      if ((state === 'running' || state === 'paused') && flags.force !== true && flags.grace === undefined) {
        throw new DroverError('failed-precondition', `sandbox ${reference} is ${state}`, {
          hint: `stop it first, or remove it with drover sandbox rm --force ${reference}`,
        });
      }
      return await client.sandboxes.remove(reference, { ...options, signal });
    },
    unless(flags, ['deleted']),
  );
}

const stateNames = [
  'pending',
  'scheduled',
  'preparing',
  'starting',
  'running',
  'paused',
  'stopping',
  'stopped',
  'failed',
  'lost',
  'deleting',
  'deleted',
];

/** The status, as for `run`, if the sandbox failed and its command has no status. */
const failedStatus = 125;

/** Returns the main process's status after a wait for the end, and 0 otherwise. */
export async function wait(
  cli: Cli,
  [reference]: readonly [string],
  flags: { readonly for?: readonly string[]; readonly timeout?: string },
): Promise<number> {
  const wanted = flags.for ?? ['stopped', 'failed', 'deleted'];
  for (const name of wanted) {
    if (!stateNames.includes(name)) {
      throw new DroverError('invalid-argument', `there is no state ${JSON.stringify(name)}`, {
        hint: `the states are ${stateNames.join(', ')}`,
      });
    }
    sandboxStateValue(name as SandboxStateName);
  }
  const timeoutMs = flags.timeout === undefined ? undefined : parseDurationMs(flags.timeout);
  const client = await cli.connect();
  const waiting = client.sandboxes.waitFor(reference, wanted as SandboxStateName[], {
    ...(timeoutMs !== undefined && { timeoutMs }),
    signal: cli.signal,
  });
  const sandbox = await waiting;
  if (cli.out.json) cli.out.object(sandboxJson(sandbox));
  else cli.out.line(endText(sandbox));
  if (flags.for !== undefined) return 0;
  return sandbox.exitCode ?? (sandboxStateName(sandbox.state) === 'failed' ? failedStatus : 0);
}
