import { timestampMs, type Timestamp } from '@bufbuild/protobuf/wkt';
import type { JsonValue } from '@bufbuild/protobuf';
import { formatAge } from '@drover/foundation';
import { api } from '@drover/protocol';
import { actionsOf, sandboxStateName } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { type Column, messageJson, oneLine, sandboxLabel } from '../../output/index.ts';

export function sandboxJson(sandbox: api.Sandbox): JsonValue {
  return messageJson(api.SandboxSchema, sandbox);
}

export function age(time: Timestamp | undefined, now = Date.now()): string {
  return time === undefined ? '' : formatAge(now - timestampMs(time));
}

const statusSuffices: ReadonlySet<string> = new Set(['', 'exited', 'stopped', 'removed']);
const reasonShown: ReadonlySet<string> = new Set(['stopped', 'failed', 'pending', 'lost']);

/** The state and its cause: `stopped (3)`, `stopped (ttl)`, `failed (image-not-found)`. */
export function stateText(sandbox: api.Sandbox): string {
  const name = sandboxStateName(sandbox.state);
  const { reason, exitCode } = sandbox;
  if (reason === 'out-of-memory') return `${name} (out of memory)`;
  // The exit status explains a command that exited or that a person stopped.
  if (exitCode !== undefined && name === 'stopped' && statusSuffices.has(reason)) return `${name} (${exitCode})`;
  return reason !== '' && reasonShown.has(name) ? `${name} (${reason})` : name;
}

/** The state, and why an ended sandbox ended: `stopped (ttl): stopped at the end of …`. */
export function endText(sandbox: api.Sandbox): string {
  const ended = ['stopped', 'failed'].includes(sandboxStateName(sandbox.state));
  return ended && sandbox.message !== '' ? `${stateText(sandbox)}: ${oneLine(sandbox.message)}` : stateText(sandbox);
}

/** Conditions that need attention: `contained`, `untrusted`, `session lost`. */
export function marks({ containment, identity, session }: api.Sandbox): readonly string[] {
  return [
    ...(actionsOf(containment).length > 0 ? ['contained'] : []),
    // A revoked identity shows as contained.
    ...(identity?.verdict === 'untrusted' ? ['untrusted'] : []),
    ...(session?.state === 'failed' ? ['session lost'] : []),
  ];
}

export const listColumns: readonly Column<api.Sandbox>[] = [
  { title: 'NAME', value: sandboxLabel },
  { title: 'ID', value: (s) => s.id },
  { title: 'STATE', value: (s) => [stateText(s), ...marks(s)].join(', ') },
  { title: 'IMAGE', value: (s) => s.spec?.image ?? '' },
  { title: 'HOST', value: (s) => s.hostName },
  { title: 'AGE', value: (s) => age(s.createdAt) },
];

/** Prints the sandbox that a command created or changed. */
export function printSandbox(cli: Cli, sandbox: api.Sandbox): void {
  if (cli.out.json) cli.out.object(sandboxJson(sandbox));
  else cli.out.line(sandboxLabel(sandbox));
}
