import { DroverError, withDeadline, type Clock, type SandboxId } from '@drover/foundation';
import type { InitFailure, Journal, StepFailure, StepPlace } from '../../events/index.ts';
import { responseSlackMs, stderrTailBytes, stepMs } from '../../limits.ts';
import type { CommandStep, PlanStep } from './plan.ts';
import { StreamLost, type ResponseOf, type SessionStream } from '../connection/index.ts';
import { Tail } from './tail.ts';

export interface PlanContext {
  readonly id: SandboxId;
  readonly startCount: number;
  readonly stream: SessionStream;
  readonly journal: Journal;
  readonly clock: Clock;
  /** Aborts at an intended end, after which nothing is published (I-24). */
  readonly signal: AbortSignal;
  /** Names of the steps that this start has completed: they are not repeated (I-32). */
  readonly done: readonly string[];
  /** Sends AgentReady, or returns the response to an earlier one. */
  readonly ready: () => Promise<void>;
}

export type PlanOutcome =
  | { readonly kind: 'completed' }
  | { readonly kind: 'failed'; readonly place: StepPlace; readonly failure: StepFailure }
  /** The session or the sandbox ended first. */
  | { readonly kind: 'cancelled' };

/**
 * Runs the missing steps in order, each after the previous one has exited (I-29); the first failure ends the plan (I-30).
 * Publishes an event for each step. The index of a step and the count refer to the whole plan.
 */
export async function executePlan(steps: readonly PlanStep[], context: PlanContext): Promise<PlanOutcome> {
  const { id, startCount, journal, clock, signal, done } = context;
  const count = steps.length;
  const began = clock.now();
  journal.publish({ kind: 'init', type: 'InitStarted', subject: id, data: { count, startCount } });
  for (const [i, step] of steps.entries()) {
    if (done.includes(step.name)) continue;
    const place: StepPlace = { step: step.name, index: i + 1, count };
    journal.publish({ kind: 'init', type: 'InitStepStarted', subject: id, data: place });
    const stepBegan = clock.now();
    const failure = await (step.name === 'agent-ready' ? startMain(context) : runCommand(step, context));
    const durationMs = clock.now() - stepBegan;
    if (signal.aborted || failure === 'sandbox-ended') return { kind: 'cancelled' };
    if (failure !== undefined) {
      journal.publish({ kind: 'init', type: 'InitStepFailed', subject: id, data: { ...place, ...failure, durationMs } });
      journal.publish({ kind: 'init', type: 'InitFailed', subject: id, data: { ...place, ...failure, startCount } });
      return { kind: 'failed', place, failure };
    }
    journal.publish({ kind: 'init', type: 'InitStepCompleted', subject: id, data: { ...place, durationMs, exitCode: 0 } });
  }
  journal.publish({ kind: 'init', type: 'InitCompleted', subject: id, data: { count, durationMs: clock.now() - began, startCount } });
  return { kind: 'completed' };
}

/** Requests AgentReady, which is idempotent (I-32). */
export async function requestReady(stream: SessionStream): Promise<void> {
  await stream.request({ case: 'agentReady', value: {} }, 'agentReadyDone');
}

async function startMain({ clock, ready }: PlanContext): Promise<StepFailure | undefined> {
  try {
    await within(clock, stepMs + responseSlackMs, 'the start of the command', ready());
    return undefined;
  } catch (error) {
    // The command was started: its exit was reported before the response.
    if (error instanceof StreamLost && error.mainExited) return undefined;
    return failureOf(error);
  }
}

/** Runs one command in the sandbox. Discards its stdout, and retains the end of its stderr. */
async function runCommand(step: CommandStep, { stream, clock }: PlanContext): Promise<StepFailure | 'sandbox-ended' | undefined> {
  const stderr = new Tail(stderrTailBytes);
  let exited: ResponseOf<'stepExited'>;
  try {
    const { name, argv, stdin, timeoutMs } = step;
    const request = stream.request(
      { case: 'runStep', value: { name, argv: [...argv], stdin, timeoutMs, once: true } },
      'stepExited',
      ({ case: kind, value }) => {
        if (kind === 'stepOutput' && value.stderr) stderr.push(value.data);
      },
    );
    // Init enforces the timeout of the step; this deadline is for an init that does not report its end.
    exited = await within(clock, timeoutMs + responseSlackMs, `the end of the step ${name}`, request);
  } catch (error) {
    if (error instanceof StreamLost && error.mainExited) return 'sandbox-ended';
    return withStderr(failureOf(error), stderr);
  }
  const { exit, timedOut } = exited;
  if (timedOut) {
    return withStderr({ reason: 'timeout', message: `the step ${step.name} took longer than ${step.timeoutMs / 1000} s` }, stderr);
  }
  if (exit === undefined) return { reason: 'protocol-error', message: `the sandbox did not report how the step ${step.name} ended` };
  if (exit.code === 0) return undefined;
  const status = exit.signal === '' ? `exited with ${exit.code}` : `was ended by ${exit.signal}`;
  const how = exit.outOfMemory ? `${status}: the sandbox ran out of memory` : status;
  return withStderr({ reason: 'exit-code', message: `the step ${step.name} ${how}`, exitCode: exit.code }, stderr);
}

function withStderr(failure: StepFailure, stderr: Tail): StepFailure {
  const text = stderr.toString();
  return text === '' ? failure : { ...failure, stderr: text };
}

function failureOf(error: unknown): StepFailure {
  const message = error instanceof Error ? error.message : String(error);
  return { reason: reasonOf(error), message };
}

function reasonOf(error: unknown): InitFailure {
  if (error instanceof StreamLost) return 'transport-error';
  if (!(error instanceof DroverError)) return 'io-error';
  switch (error.code) {
    case 'command-not-found':
    case 'command-not-executable':
    case 'path-not-found':
    case 'invalid-argument':
      return 'spawn-failed';
    case 'timed-out':
      return 'timeout';
    case 'protocol-violation':
    case 'unimplemented':
      return 'protocol-error';
    default:
      return 'io-error';
  }
}

/** Waits for `work`. @throws {DroverError} timed-out when it takes longer than `ms` */
export async function within<T>(clock: Pick<Clock, 'sleep'>, ms: number, what: string, work: Promise<T>): Promise<T> {
  return await withDeadline(work, ms, clock, () => new DroverError('timed-out', `${what} was not reported within ${ms / 1000} s`));
}
