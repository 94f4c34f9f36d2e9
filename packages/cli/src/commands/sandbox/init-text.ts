import { DroverError } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { planFailed } from '@drover/sdk';
import { maxStderrShown } from '../../limits.ts';
import { oneLine, sandboxLabel } from '../../output/index.ts';

/** Why a step failed, in words; `exit-code` says itself which. */
const reasons: Readonly<Record<string, string>> = {
  timeout: 'it took too long',
  'spawn-failed': 'it could not be started',
  'io-error': 'its input or output failed',
  'transport-error': 'the session broke',
  'protocol-error': 'its answer was not understood',
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

/** `exit 3`, or why it did not come to an exit. */
export function failureText({ reason, exitCode }: { readonly reason: string; readonly exitCode?: number | undefined }): string {
  return reason === 'exit-code' ? `exit ${exitCode ?? 'unknown'}` : (reasons[reason] ?? reason);
}

/** What the init plan is at: `step 2 of 5, git`, `completed`, `failed at post-init, exit 3`; empty before it began. */
export function initText(init: api.InitStatus | undefined): string {
  switch (init?.state) {
    case 'running':
      return init.step === 0 ? 'beginning' : stepText(stepOf(init));
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
 * The sentence for a sandbox whose init plan failed (I-30); undefined when it did not.
 * @param kept it is left as it is, to be looked at
 */
export function planFailure(sandbox: api.Sandbox, kept: boolean): DroverError | undefined {
  if (!planFailed(sandbox)) return undefined;
  const label = sandboxLabel(sandbox);
  const hint = kept
    ? `drover sandbox get ${label} shows more, drover sandbox rm ${label} removes it`
    : 'without --rm it is left to be looked at';
  return new DroverError('runtime-failed', `the init plan of ${label} failed${whyFailed(sandbox)}`, { hint });
}

/** ` at step 4 of 5, post-init: exit 3: the end of its stderr`. */
function whyFailed({ init, message }: api.Sandbox): string {
  const own = message.replace(/^init failed: /, '');
  // The sandbox's own row may be ahead of the view of its plan.
  if (init?.state !== 'failed') return `: ${own}`;
  const where = init.stepName === '' ? '' : ` at ${stepText(stepOf(init))}`;
  const said = init.stderr === '' && init.reason !== 'exit-code' ? own : oneLine(endOf(init.stderr));
  return `${where}: ${failureText(init)}${said === '' ? '' : `: ${said}`}`;
}

/** The end of what a step wrote, as much as a sentence takes. */
export function endOf(stderr: string): string {
  const text = stderr.trim();
  return text.length <= maxStderrShown ? text : `… ${text.slice(-maxStderrShown)}`;
}
