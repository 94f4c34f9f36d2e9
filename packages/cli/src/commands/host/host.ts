import { DroverError, formatBytes } from '@drover/foundation';
import { api } from '@drover/protocol';
import type { JsonValue } from '@bufbuild/protobuf';
import { maxJoinUses, parseCount, parseDurationMs } from '@drover/spec';
import type { Cli } from '../../cli.ts';
import { type Column, hostStateName, messageJson } from '../../output/index.ts';
import { parseLabels } from '../../parse.ts';
import { age } from '../sandbox/show.ts';

const hostJson = (host: api.Host): JsonValue => messageJson(api.HostSchema, host);

function stateText(host: api.Host): string {
  const name = hostStateName(host.state);
  return host.reason === '' ? name : `${name} (${host.reason})`;
}

function room(host: api.Host): string {
  const { capacity, allocatable } = host;
  if (capacity === undefined || allocatable === undefined) return '';
  return `${allocatable.cpuMillis / 1000}/${capacity.cpuMillis / 1000} CPUs, ${formatBytes(Number(allocatable.memoryBytes))} of ${formatBytes(Number(capacity.memoryBytes))}`;
}

function disk({ capacity, diskAvailableBytes }: api.Host): string {
  if (capacity === undefined || diskAvailableBytes === 0n) return '';
  return `${formatBytes(Number(diskAvailableBytes))} free of ${formatBytes(Number(capacity.diskBytes))}`;
}

const columns: readonly Column<api.Host>[] = [
  { title: 'NAME', value: (h) => h.name },
  { title: 'ID', value: (h) => h.id },
  { title: 'STATE', value: stateText },
  { title: 'SANDBOXES', value: (h) => String(h.sandboxes) },
  { title: 'FREE', value: room },
  { title: 'RUNTIMES', value: (h) => h.runtimes.join(',') },
  { title: 'SEEN', value: (h) => age(h.lastSeenAt) },
];

export async function ls(cli: Cli, _: readonly [], flags: { readonly all?: boolean }): Promise<void> {
  const client = await cli.connect();
  const hosts = await client.hosts.list({ includeRemoved: flags.all === true, signal: cli.signal });
  cli.out.list(hosts, hostJson, columns, 'no hosts; add one with the command that drover host token prints');
}

export async function get(cli: Cli, [reference]: readonly [string]): Promise<void> {
  const client = await cli.connect();
  const host = await client.hosts.get(reference, cli.signal);
  if (cli.out.json) return cli.out.object(hostJson(host));
  cli.out.details([
    ['name', host.name],
    ['id', host.id],
    ['state', stateText(host)],
    ['free', room(host)],
    ['disk', disk(host)],
    ['sandboxes', String(host.sandboxes)],
    ['runtimes', host.runtimes.join(', ')],
    ['agent', host.agentVersion],
    ['seen', age(host.lastSeenAt)],
    [
      'labels',
      Object.entries(host.labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(' '),
    ],
  ]);
}

/** L-1: prints a join token, and the command to run on the host. */
export async function token(
  cli: Cli,
  _: readonly [],
  flags: { readonly ttl?: string; readonly uses?: string; readonly label?: readonly string[] },
): Promise<void> {
  const options = {
    ...(flags.ttl !== undefined && { ttlSeconds: tokenLifeSeconds(flags.ttl) }),
    ...(flags.uses !== undefined && { uses: parseCount('--uses', flags.uses, maxJoinUses) }),
    labels: parseLabels(flags.label ?? []),
  };
  const client = await cli.connect();
  const made = await client.hosts.createJoinToken({ ...options, signal: cli.signal });
  const address = loopbackAddress(made.command);
  if (address !== undefined) {
    cli.out.note(
      `other machines cannot join: the control plane listens on a loopback address (${address})`,
      'start it with --listen 0.0.0.0:7443 --public-host NAME, its name on your network (docs/hosts.md)',
    );
  }
  if (cli.out.json) return cli.out.object(messageJson(api.JoinTokenSchema, made));
  cli.out.line(made.token);
  if (made.command !== '') cli.out.note(`on the host: ${made.command}`);
}

/** The address in a join command if it is a loopback address. Exported for its tests. */
export function loopbackAddress(command: string): string | undefined {
  const url = command.split(' ').find((word) => URL.canParse(word) && word.startsWith('https:'));
  const host = url === undefined ? '' : new URL(url).hostname;
  return host === 'localhost' || host === '[::1]' || host.startsWith('127.') ? host : undefined;
}

/** Exported for its tests. @throws {DroverError} invalid-argument */
export function tokenLifeSeconds(text: string): number {
  const seconds = Math.ceil(parseDurationMs(text) / 1000);
  if (seconds > 0) return seconds;
  throw new DroverError('invalid-argument', `a token that is valid for ${JSON.stringify(text)} lets no host join`, {
    hint: 'write how long it is valid, such as --ttl 1h',
  });
}

type HostChange = (client: Awaited<ReturnType<Cli['connect']>>, reference: string, signal: AbortSignal) => Promise<api.Host>;

async function change(cli: Cli, reference: string, act: HostChange): Promise<void> {
  const host = await act(await cli.connect(), reference, cli.signal);
  if (cli.out.json) cli.out.object(hostJson(host));
  else cli.out.line(`${host.name}: ${stateText(host)}`);
}

export function cordon(cli: Cli, [reference]: readonly [string]): Promise<void> {
  return change(cli, reference, (client, host, signal) => client.hosts.cordon(host, signal));
}

export function uncordon(cli: Cli, [reference]: readonly [string]): Promise<void> {
  return change(cli, reference, (client, host, signal) => client.hosts.uncordon(host, signal));
}

/** Waits until the host has no sandboxes. An interrupt does not end the drain. */
export async function drain(cli: Cli, [reference]: readonly [string], flags: { readonly stop?: boolean }): Promise<void> {
  const client = await cli.connect();
  let last: api.DrainProgress | undefined;
  for await (const progress of client.hosts.drain(reference, { stop: flags.stop === true, signal: cli.signal })) {
    last = progress;
    if (cli.out.json) cli.out.record(messageJson(api.DrainProgressSchema, progress));
    else cli.out.note(progress.message === '' ? `${progress.remaining} of ${progress.total} sandboxes remaining` : progress.message);
  }
  // A finished drain may leave sandboxes for which no other host has capacity.
  if (last?.done !== true || last.remaining > 0) {
    throw new DroverError('failed-precondition', `${reference} still has sandboxes: ${last?.remaining ?? 'an unknown number'}`, {
      hint: `make room on another host and drain again, or stop them with drover host drain --stop ${reference}`,
    });
  }
  if (!cli.out.json) cli.out.line(`${reference}: drained`);
}

export async function rm(cli: Cli, [reference]: readonly [string], flags: { readonly force?: boolean }): Promise<void> {
  const client = await cli.connect();
  const host = await client.hosts.get(reference, cli.signal);
  await client.hosts.remove(host.id, { force: flags.force === true, signal: cli.signal });
  if (cli.out.json) cli.out.object(hostJson({ ...host, state: api.HostState.REMOVED }));
  else cli.out.line(reference);
}
