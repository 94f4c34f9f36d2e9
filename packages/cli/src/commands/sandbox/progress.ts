import type { DroverClient } from '@drover/sdk';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cli } from '../../cli.ts';
import { StatusLine } from '../../terminal/index.ts';
import { initText } from './init-text.ts';
import { progressAfterMs, progressIntervalMs } from '../../limits.ts';

/**
 * Shows the sandbox's progress until `work` settles: a redrawn line on a terminal, a line for each change in a pipe. Work that settles
 * quickly shows nothing.
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
    // Loaded late, since most commands have finished by now.
    const { sandboxStateName } = await import('@drover/sdk');
    for (;;) {
      const { state, message, init } = await client.sandboxes.get(reference, done);
      const name = sandboxStateName(state);
      // A running sandbox may still run its init plan. After that its command's own output shows progress.
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
    // Either `work` has settled or the control plane did not respond, which the caller of `work` reports.
  } finally {
    status?.[Symbol.dispose]();
  }
}
