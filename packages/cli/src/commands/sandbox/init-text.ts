import { DroverError } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { planFailed } from '@drover/sdk';
import { maxStderrShown } from '../../limits.ts';
import { oneLine, sandboxLabel } from '../../output/index.ts';

/** Why a step failed, in words. `exit-code` has none: the code itself is shown. */
const reasons: Readonly<Record<string, string>> = {
  timeout: 'it took too long',
  'spawn-failed': 'it could not be started',
  'io-error': 'its input or output failed',
  'transport-error': 'the session broke',
  'protocol-error': 'init sent an invalid message',
  'identity-untrusted': 'its identity is not trusted',
};

export interface Step {
  /** 1 to `count`; 0 before the first. */
  readonly index: number;
  readonly count: number;
  readonly name: string;
}

/** `step 2 of 5, git`. */
export function stepText({ index, count, name }: Step): string {
  return `step ${index} of ${count}, ${name}`;
}

/** `exit 3`, or why there is no exit code. */
export function failureText({ reason, exitCode }: { readonly reason: string; readonly exitCode?: number | undefined }): string {
  return reason === 'exit-code' ? `exit ${exitCode ?? 'unknown'}` : (reasons[reason] ?? reason);
}

/** The state of the init plan: `step 2 of 5, git`, `completed`, `failed at post-init, exit 3`; empty before it starts. */
export function initText(init: api.InitStatus | undefined): string {
  switch (init?.state) {
    case 'running':
      return init.step === 0 ? 'starting' : stepText(stepOf(init));
    case 'completed':
      return 'completed';
    case 'failed':
      return init.stepName === '' ? `failed: ${failureText(init)}` : `failed at ${init.stepName}, ${failureText(init)}`;
    default:
      return '';
  }
}

function stepOf({ step, count, stepName }: api.InitStatus): Step {
  return { index: step, count, name: stepName };
}

/**
 * The error of a failed init plan (I-30).
 * @param kept whether the sandbox is kept for inspection
 * @returns undefined if the plan did not fail
 */
export function planFailure(sandbox: api.Sandbox, kept: boolean): DroverError | undefined {
  if (!planFailed(sandbox)) return undefined;
  const label = sandboxLabel(sandbox);
  const hint = kept
    ? `drover sandbox get ${label} shows more, drover sandbox rm ${label} removes it`
    : 'run without --rm to keep the sandbox for inspection';
  return new DroverError('runtime-failed', `the init plan of ${label} failed${whyFailed(sandbox)}`, { hint });
}

/** ` at step 4 of 5, post-init: exit 3: the end of its stderr`. */
function whyFailed({ init, message }: api.Sandbox): string {
  const own = message.replace(/^init failed: /, '');
  // The sandbox's state may be newer than the view of its plan.
  if (init?.state !== 'failed') return `: ${own}`;
  const where = init.stepName === '' ? '' : ` at ${stepText(stepOf(init))}`;
  const detail = init.stderr === '' && init.reason !== 'exit-code' ? own : oneLine(endOf(init.stderr));
  return `${where}: ${failureText(init)}${detail === '' ? '' : `: ${detail}`}`;
}

/** The end of a step's stderr, short enough for a sentence. */
export function endOf(stderr: string): string {
  const text = stderr.trim();
  return text.length <= maxStderrShown ? text : `… ${text.slice(-maxStderrShown)}`;
}
