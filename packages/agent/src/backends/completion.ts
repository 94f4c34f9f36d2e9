import type { PreparedStart, StartRequest } from './backend.ts';

/**
 * Starts init while the caller completes the run directory. After a failure neither is under way any more, so nothing writes where the caller cleans up.
 * @param start has to await `completed` before it opens init's gate
 */
export async function startCompleting(
  request: StartRequest,
  prepared: PreparedStart,
  signal: AbortSignal,
  start: (completed: Promise<void>) => Promise<void>,
): Promise<void> {
  const failed = new AbortController();
  const completed = request.complete(prepared, AbortSignal.any([signal, failed.signal]));
  // `start` awaits it later.
  completed.catch(() => undefined);
  try {
    await start(completed);
  } catch (error) {
    failed.abort(error);
    await completed.catch(() => undefined);
    throw error;
  }
}
