import { Backoff, type SandboxId } from '@drover/foundation';
import { stepBackoffBaseMs, stepBackoffCapMs } from '../limits.ts';
import { stepSubject, type Lane, laneOf, type Step } from './step.ts';

interface Retry {
  readonly id: SandboxId;
  readonly generation: number;
  readonly kind: Step['kind'];
  readonly backoff: Backoff;
  /** When the step may run again; undefined after it succeeded. */
  until: number | undefined;
}

/** Remembers the last step of each lane of a host, and when it may run again. Another step, or a newer generation, does not wait. */
export class StepRetries {
  readonly #retries = new Map<Lane, Retry>();
  readonly #random: (() => number) | undefined;

  constructor(random: (() => number) | undefined) {
    this.#random = random;
  }

  /** Whether the step still has to wait. A step that succeeded and is planned again waits too, which prevents a hot loop. */
  mustWait(step: Step, now: number): boolean {
    const retry = this.#of(step);
    if (retry === undefined) {
      this.forget(laneOf(step));
      return false;
    }
    retry.until ??= now + retry.backoff.nextMs();
    return retry.until > now;
  }

  succeeded(step: Step): void {
    this.#ensure(step).until = undefined;
  }

  /** @returns after how many milliseconds the step may run again */
  failed(step: Step, now: number): number {
    const retry = this.#ensure(step);
    const delayMs = retry.backoff.nextMs();
    retry.until = now + delayMs;
    return delayMs;
  }

  /** How often the step has failed in a row. */
  failures(step: Step): number {
    return this.#of(step)?.backoff.attempts ?? 0;
  }

  forget(lane: Lane): void {
    this.#retries.delete(lane);
  }

  due(now: number): readonly SandboxId[] {
    return [...this.#retries.values()].filter(({ until }) => until !== undefined && until <= now).map(({ id }) => id);
  }

  /** When the next step of a lane that is not busy may run again; infinity: none waits. */
  nextAt(isBusy: (lane: Lane) => boolean): number {
    let next = Number.POSITIVE_INFINITY;
    for (const [lane, { until }] of this.#retries) if (until !== undefined && !isBusy(lane)) next = Math.min(next, until);
    return next;
  }

  #of(step: Step): Retry | undefined {
    const retry = this.#retries.get(laneOf(step));
    return retry?.generation === stepSubject(step).generation && retry.kind === step.kind ? retry : undefined;
  }

  #ensure(step: Step): Retry {
    const known = this.#of(step);
    if (known !== undefined) return known;
    const { id, generation } = stepSubject(step);
    const random = this.#random;
    const backoff = new Backoff({ baseMs: stepBackoffBaseMs, capMs: stepBackoffCapMs, ...(random === undefined ? {} : { random }) });
    const retry: Retry = { id, generation, kind: step.kind, backoff, until: 0 };
    this.#retries.set(laneOf(step), retry);
    return retry;
  }
}
