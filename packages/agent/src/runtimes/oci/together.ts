/**
 * Does things at the same time, and is done when all of them are, whatever becomes of one: what went on behind a failure would bring back
 * what is taken away because of it. @throws what the first of them in the list threw
 */
export async function together(...tasks: readonly Promise<unknown>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(tasks)) if (outcome.status === 'rejected') throw outcome.reason;
}
