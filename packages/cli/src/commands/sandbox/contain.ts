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

/** I-4: whatever its session is, and without one. Ends with 0 when all is done, and with 6 when something has to wait for the host. */
export async function contain(cli: Cli, [reference]: readonly [string], flags: ContainFlags & ReasonFlag): Promise<number> {
  const actions = actionsIn(flags);
  if (actions.length === 0) {
    throw new DroverError('invalid-argument', 'contain needs at least one of --cut-network, --pause, --kill and --revoke', {
      hint: `drover sandbox contain ${reference} --cut-network keeps it running for you to look at`,
    });
  }
  const client = await cli.connect();
  return tell(cli, await client.sandboxes.contain(reference, actions, { reason: flags.reason ?? '', signal: cli.signal }));
}

/** Undoes it: what the flags name, or all that is in force; ends as `contain` does. */
export async function release(cli: Cli, [reference]: readonly [string], flags: ContainFlags): Promise<number> {
  const client = await cli.connect();
  return tell(cli, await client.sandboxes.release(reference, actionsIn(flags), { signal: cli.signal }));
}

function actionsIn({ cutNetwork, pause, kill, revoke }: ContainFlags): readonly ContainmentAction[] {
  return [
    ...(cutNetwork === true ? (['cut-network'] as const) : []),
    ...(pause === true ? (['pause'] as const) : []),
    ...(kill === true ? (['kill'] as const) : []),
    ...(revoke === true ? (['revoke'] as const) : []),
  ];
}

function tell(cli: Cli, answer: api.ContainSandboxResponse): number {
  if (cli.out.json) {
    cli.out.object(messageJson(api.ContainSandboxResponseSchema, answer));
  } else {
    if (answer.results.length === 0) cli.out.note('nothing was in force');
    for (const { action, done, message } of answer.results) {
      const why = message === '' && !done ? 'it is stored, and done as soon as the host is back' : message;
      cli.out.line(`${action}: ${done ? 'done' : 'not yet'}${why === '' ? '' : `: ${oneLine(why)}`}`);
    }
  }
  return answer.results.every(({ done }) => done) ? 0 : errorCodes['host-unavailable'].exit;
}
