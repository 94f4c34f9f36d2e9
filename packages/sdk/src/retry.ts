import { Backoff, DroverError, errnoOf, formatAge, hasCode, type Clock } from '@drover/foundation';
import { innermost } from './errors.ts';
import { connectWaitMs, retryBaseMs, retryCapMs } from './limits.ts';

/** How long a failed call may wait, and for what, ms. */
export interface RetryBudgets {
  /** The control plane, if a request may have reached it: it is restarting, or the network is interrupted. */
  readonly controlPlaneMs: number;
  /** The host of an attached process. Absent: the call fails at the first such response (L-15). */
  readonly hostMs?: number;
}

/**
 * The tries of one call. A budget begins with a failure and ends with the next success, so that a call may break any number of times. A
 * response that a host is down ends the wait for the control plane; the wait for the host continues. If nothing has listened at the address
 * since the first try, the limit is `connectWaitMs`: enough for a control plane that is starting, and short for a wrong address.
 */
export class Retry {
  readonly #clock: Clock;
  readonly #budgets: RetryBudgets;
  readonly #backoff = new Backoff({ baseMs: retryBaseMs, capMs: retryCapMs });
  #failingSince: { readonly controlPlane?: number; readonly host?: number } = {};
  /** A request may have arrived: a try ended in another way than a refused connection. */
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
   * @param onWait called before the wait
   * @throws {DroverError} `error` if another try is pointless; with the wait in its message if the budget is spent
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

  /** `error`, with the doubt in its message if a request may have arrived and only its response was lost. */
  withDoubt(error: unknown, doubt: string): unknown {
    if (!this.#wasReached || !hasCode(error, 'control-plane-unreachable', 'unavailable')) return error;
    return new DroverError(error.code, `${error.message}; ${doubt} is not known`, {
      hint: 'when the control plane is back, check with drover sandbox ls, drover host ls or drover events before you try again',
      cause: error,
    });
  }

  /** The start of the wait for the component that `error` reports as missing. */
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
