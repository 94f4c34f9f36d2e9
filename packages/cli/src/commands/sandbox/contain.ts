import { DroverError, errorCodes } from '@drover/foundation';
import { api } from '@drover/protocol';
import type { ContainmentAction } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { messageJson, oneLine } from '../../output/index.ts';

export interface ContainFlags {
  readonly cutNetwork?: boolean;
  readonly pause?: boolean;
  readonly kill?: boolean;
  readonly revoke?: boolean;
}

interface ReasonFlag {
  readonly reason?: string;
}

/** I-4: works without a session. Returns 0 when all actions are in force, and 6 when an action waits for the host. */
export async function contain(cli: Cli, [reference]: readonly [string], flags: ContainFlags & ReasonFlag): Promise<number> {
  const actions = actionsIn(flags);
  if (actions.length === 0) {
    throw new DroverError('invalid-argument', 'contain needs at least one of --cut-network, --pause, --kill and --revoke', {
      hint: `drover sandbox contain ${reference} --cut-network keeps it running for inspection`,
    });
  }
  const client = await cli.connect();
  return report(cli, await client.sandboxes.contain(reference, actions, { reason: flags.reason ?? '', signal: cli.signal }));
}

/** Lifts the actions that the flags name, or all of them. Returns the same statuses as `contain`. */
export async function release(cli: Cli, [reference]: readonly [string], flags: ContainFlags): Promise<number> {
  const client = await cli.connect();
  return report(cli, await client.sandboxes.release(reference, actionsIn(flags), { signal: cli.signal }));
}

function actionsIn({ cutNetwork, pause, kill, revoke }: ContainFlags): readonly ContainmentAction[] {
  return [
    ...(cutNetwork === true ? (['cut-network'] as const) : []),
    ...(pause === true ? (['pause'] as const) : []),
    ...(kill === true ? (['kill'] as const) : []),
    ...(revoke === true ? (['revoke'] as const) : []),
  ];
}

function report(cli: Cli, answer: api.ContainSandboxResponse): number {
  if (cli.out.json) {
    cli.out.object(messageJson(api.ContainSandboxResponseSchema, answer));
  } else {
    if (answer.results.length === 0) cli.out.note('no containment was in force');
    for (const { action, done, message, hint } of answer.results) {
      const why = message === '' && !done ? 'stored; takes effect when the host reconnects' : message;
      cli.out.line(`${action}: ${done ? 'done' : 'not yet'}${why === '' ? '' : `: ${oneLine(why)}`}`);
      if (hint !== '') cli.out.line(`  hint: ${oneLine(hint)}`);
    }
  }
  return answer.results.every(({ done }) => done) ? 0 : errorCodes['host-unavailable'].exit;
}
