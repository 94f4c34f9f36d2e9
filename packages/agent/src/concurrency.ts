/**
 * Awaits all tasks, also after one has failed: a task that continued behind a failure would recreate what the failure's cleanup removes.
 * @throws the error of the first task in the list that failed
 */
export async function settled(...tasks: readonly Promise<unknown>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(tasks)) if (outcome.status === 'rejected') throw outcome.reason;
}
