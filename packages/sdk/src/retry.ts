import { Backoff, DroverError, errnoOf, formatAge, hasCode, type Clock } from '@drover/foundation';
import { innermost } from './errors.ts';
import { connectWaitMs, retryBaseMs, retryCapMs } from './limits.ts';

/** What a call that failed may wait for, and how long, ms. */
export interface RetryBudgets {
  /** The control plane, once a connection to it stood or may have: it is restarting, or the network is interrupted. */
  readonly controlPlaneMs: number;
  /** The host of a process that was attached to. Absent fails at the first such answer (L-15). */
  readonly hostMs?: number;
}

/**
 * The tries of one call. A budget begins with a failure and ends with the next success, so that a call may break any number of times. That
 * a host is down is what the control plane responds: it ends the wait for the control plane. The wait for the host goes on meanwhile.
 * Where nothing has listened from the first try on, `connectWaitMs` is all that is waited: that covers a control plane that is being
 * started or restarted, and does not keep a person who named a wrong address.
 */
export class Retry {
  readonly #clock: Clock;
  readonly #budgets: RetryBudgets;
  readonly #backoff = new Backoff({ baseMs: retryBaseMs, capMs: retryCapMs });
  #failingSince: { readonly controlPlane?: number; readonly host?: number } = {};
  /** A request may have arrived: some try ended otherwise than by a refused connection. */
  #wasReached = false;

  constructor(clock: Clock, budgets: RetryBudgets) {
    this.#clock = clock;
    this.#budgets = budgets;
  }

  succeeded(): void {
    this.#wasReached = true;
    this.#failingSince = {};
    this.#backoff.reset();
  }

  /**
   * Waits before the next try.
   * @param onWait called when there is to be another one
   * @throws {DroverError} `error` where another try makes no sense; with what was waited for, and how long, where the budget is spent
   */
  async pause(error: DroverError, signal: AbortSignal | undefined, onWait?: (error: DroverError) => void): Promise<void> {
    const budgetMs = this.#budgetMs(error);
    if (budgetMs === undefined || signal?.aborted === true) throw error;
    const clock = this.#clock;
    const since = this.#since(error);
    const delayMs = this.#backoff.nextMs();
    if (clock.now() + delayMs - since > budgetMs) throw gaveUp(error, clock.now() - since);
    onWait?.(error);
    await clock.sleep(delayMs, signal);
  }

  /** `error`, with the doubt in its sentence where a request may have arrived and only its answer was lost. */
  withDoubt(error: unknown, doubt: string): unknown {
    if (!this.#wasReached || !hasCode(error, 'control-plane-unreachable', 'unavailable')) return error;
    return new DroverError(error.code, `${error.message}; ${doubt} is not known`, {
      hint: 'when the control plane is back, look with drover sandbox ls, drover host ls or drover events before trying again',
      cause: error,
    });
  }

  /** When the wait for what `error` reports as missing began. */
  #since(error: DroverError): number {
    const now = this.#clock.now();
    const { controlPlane = now, host = now } = this.#failingSince;
    if (hasCode(error, 'host-unavailable')) {
      this.#failingSince = { host };
      return host;
    }
    this.#failingSince = { ...this.#failingSince, controlPlane };
    return controlPlane;
  }

  #budgetMs(error: DroverError): number | undefined {
    if (hasCode(error, 'host-unavailable')) return this.#budgets.hostMs;
    if (!hasCode(error, 'control-plane-unreachable', 'unavailable')) return undefined;
    if (errnoOf(innermost(error)) !== 'ECONNREFUSED') this.#wasReached = true;
    return this.#wasReached ? this.#budgets.controlPlaneMs : Math.min(connectWaitMs, this.#budgets.controlPlaneMs);
  }
}

function gaveUp(error: DroverError, waitedMs: number): DroverError {
  const what = hasCode(error, 'host-unavailable') ? 'its host' : 'the control plane';
  return new DroverError(error.code, `${error.message} (waited ${formatAge(waitedMs)} for ${what})`, {
    cause: error,
    ...(error.hint !== undefined && { hint: error.hint }),
  });
}
