import type { DroverClient } from '@drover/sdk';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cli } from '../../cli.ts';
import { StatusLine } from '../../terminal/index.ts';
import { initText } from './init-text.ts';
import { progressAfterMs, progressIntervalMs } from '../../limits.ts';

/**
 * While `work` waits for a sandbox, says what the sandbox is at: redrawn on a terminal, a line for each change in a pipe.
 * Quick work shows nothing.
 */
export async function withProgress<T>(cli: Cli, client: DroverClient, reference: string, work: Promise<T>): Promise<T> {
  const done = new AbortController();
  const shown = show(cli, client, reference, done.signal);
  try {
    return await work;
  } finally {
    done.abort();
    await shown;
  }
}

/** States that the work which waits reports itself, with the reason. */
const reported: ReadonlySet<string> = new Set(['stopped', 'failed', 'deleting', 'deleted']);

async function show(cli: Cli, client: DroverClient, reference: string, done: AbortSignal): Promise<void> {
  let status: StatusLine | undefined;
  let last = '';
  try {
    await delay(progressAfterMs, undefined, { signal: done });
    // Only now: most commands are done before.
    const { sandboxStateName } = await import('@drover/sdk');
    for (;;) {
      const { state, message, init } = await client.sandboxes.get(reference, done);
      const name = sandboxStateName(state);
      // Running, it is still to be prepared; then its command speaks for itself.
      const preparing = init?.state === 'running' ? `init: ${initText(init)}` : '';
      const text = name === 'running' ? preparing : message === '' ? name : `${name}: ${message}`;
      if (text !== last && text !== '' && !reported.has(name) && !cli.out.json) {
        if (!cli.out.interactive) cli.out.note(text);
        else (status ??= new StatusLine(cli.out.stderr)).show(text);
      }
      last = text;
      await delay(progressIntervalMs, undefined, { signal: done });
    }
  } catch {
    // Ended, or the control plane did not answer: the work itself says what is wrong.
  } finally {
    status?.[Symbol.dispose]();
  }
}
