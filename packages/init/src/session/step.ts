import type { init } from '@drover/protocol';
import { maxChunkBytes } from '../limits.ts';
import type { Reply } from '../server/index.ts';
import type { Sandbox } from '../sandbox.ts';
import { exitStatus } from './exec.ts';

export type Payload = NonNullable<Reply<'session'>['payload']>;
/** Sends one response to a request; resolves when the connection takes more. */
export type Answer = (payload: Payload) => Promise<void>;

/** Runs a step of the plan or joins its run, and sends its output and its end. `signal` ends the sending, not the step (I-32). */
export async function runStep(request: init.RunStep, sandbox: Sandbox, answer: Answer, signal: AbortSignal): Promise<void> {
  const { step, joined } = await sandbox.steps.run(request);
  const { process } = step;
  await answer({ case: 'stepStarted', value: { pid: process.spawned.pid, joined } });
  for await (const { stderr, data } of process.output(0, signal)) {
    for (let at = 0; at < data.length; at += maxChunkBytes) {
      await answer({ case: 'stepOutput', value: { stderr, data: data.subarray(at, at + maxChunkBytes) } });
    }
  }
  signal.throwIfAborted();
  await answer({ case: 'stepExited', value: { exit: exitStatus(await process.finished), timedOut: step.timedOut } });
}
