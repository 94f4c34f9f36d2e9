import { Backoff, DroverError, type SandboxId } from '@drover/foundation';
import type { StepFailure } from '../events/index.ts';
import { dialBackoffBaseMs, dialBackoffCapMs, dialTotalMs } from '../limits.ts';
import { startOf, type SandboxRow } from '../model/index.ts';
import { stepNames } from './plan/index.ts';
import { isDialable } from './policy/index.ts';
import type { SessionContext } from './context.ts';

/**
 * Declares that a start of a sandbox failed (I-30). The store may not hold the start yet, or may be unavailable: both are retried for as long
 * as a dial may take. Has no effect when the sandbox no longer runs.
 * @param unbegun the failure, if no step of the plan has begun: it is published as InitFailed
 * @throws {DroverError} conflict when the store holds another start; the signal's reason
 */
export async function declareStartFailed(
  context: Pick<SessionContext, 'store' | 'journal' | 'initFailed' | 'clock' | 'logger' | 'random'>,
  start: { readonly row: SandboxRow; readonly startCount: number },
  message: string,
  unbegun: StepFailure | undefined,
  signal: AbortSignal,
): Promise<void> {
  const { store, clock, initFailed, logger, random } = context;
  const { row, startCount } = start;
  const backoff = new Backoff({ baseMs: dialBackoffBaseMs, capMs: dialBackoffCapMs, ...(random === undefined ? {} : { random }) });
  const until = clock.now() + dialTotalMs;
  for (;;) {
    signal.throwIfAborted();
    try {
      if (await initFailed(row.id, startCount, `init failed: ${message}`)) {
        if (unbegun !== undefined) publishUnbegun(context, row, startCount, unbegun);
        return;
      }
      const now = await store.sandboxes.get(row.id);
      if (now === undefined || !isDialable(now)) return;
      // The sandbox may have been started again since the session read its row: a new session handles that start.
      if (startOf(now) !== startCount) throw new DroverError('conflict', 'the sandbox was started again');
    } catch (error) {
      if (error instanceof DroverError && error.code === 'conflict') throw error;
      logger.error({ sandbox: row.id, err: error }, 'a failed start could not be stored; retrying');
    }
    if (clock.now() >= until) return logger.error({ sandbox: row.id }, 'a failed start could not be stored');
    await clock.sleep(backoff.nextMs(), signal);
  }
}

function publishUnbegun({ journal }: Pick<SessionContext, 'journal'>, row: SandboxRow, startCount: number, failure: StepFailure): void {
  const names = stepNames(row.spec.setup);
  const data = { step: names[0] ?? '', index: 1, count: names.length, ...failure, startCount };
  journal.publish({ kind: 'init', type: 'InitFailed', subject: row.id satisfies SandboxId, data });
}
