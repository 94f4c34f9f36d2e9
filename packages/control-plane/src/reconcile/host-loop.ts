import { type DroverError, Notifier, type Clock, type HostId, type Logger, type SandboxId } from '@drover/foundation';
import { publicError } from '@drover/protocol/rpc';
import type { Hub, Observation } from '../hub/index.ts';
import * as limits from '../limits.ts';
import type { SecretBox } from '../secrets/index.ts';
import type { Store } from '../store/index.ts';
import { executeStep } from './execute.ts';
import { planHost, planNetwork, planSandbox } from './plan.ts';
import { StepRetries } from './step-retries.ts';
import { beginsRun, laneOf, networkLane, stepSubject, supersedes, type Lane, type Step } from './step.ts';

export interface HostLoopOptions {
  readonly store: Store;
  readonly hub: Hub;
  readonly secrets: SecretBox;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly hostId: HostId;
  /** Aborts when the host's stream ends. */
  readonly signal: AbortSignal;
  readonly copies: readonly Observation[];
  readonly random?: () => number;
  /** The host no longer holds a copy of the sandbox. */
  readonly onAbsent: (id: SandboxId) => void;
}

/**
 * Drives one connected host to the desired state (L-22) until its stream ends. The loop is level-triggered: it plans from the store and the
 * reported copies, and a wake-up only triggers a plan. Steps of different sandboxes run concurrently, steps of one sandbox in sequence. The
 * network steps of a sandbox have their own lane, so that a cut waits for no other step (I-4).
 */
export class HostLoop {
  readonly #options: HostLoopOptions;
  readonly #changed: Notifier;
  readonly #copies = new Map<SandboxId, Observation>();
  readonly #dirty = new Set<SandboxId>();
  /** The steps under way; aborting ends the wait for a result, not the work on the host (L-21). */
  readonly #running = new Map<Lane, { readonly step: Step; readonly superseded: AbortController }>();
  readonly #retries: StepRetries;
  #resync = true;
  #ended = false;

  constructor(options: HostLoopOptions) {
    this.#options = options;
    this.#changed = new Notifier(options.clock);
    this.#retries = new StepRetries(options.random);
    // One listener, instead of one per wait: most of thousands of hosts are idle.
    options.signal.addEventListener('abort', () => this.end(), { once: true });
    if (options.signal.aborted) this.end();
    this.observed(options.copies);
  }

  /** Records the newest observations of the host. */
  observed(observations: readonly Observation[]): void {
    for (const copy of observations) {
      const known = this.#copies.get(copy.sandboxId);
      if (known !== undefined && known.sequence > copy.sequence) continue;
      this.#copies.set(copy.sandboxId, copy);
      this.#dirty.add(copy.sandboxId);
    }
    this.#changed.notify();
  }

  holds(id: SandboxId): boolean {
    return this.#copies.has(id);
  }

  /** Plans for one sandbox, or for all of them. */
  wake(id?: SandboxId): void {
    if (id === undefined) this.#resync = true;
    else this.#dirty.add(id);
    this.#changed.notify();
  }

  /** Ends the loop and its waits; steps under way continue on the host (L-21). */
  end(): void {
    this.#ended = true;
    for (const { superseded } of this.#running.values()) superseded.abort();
    this.#changed.notify();
  }

  /** Runs until the stream ends (L-16), or `end`. Never rejects. */
  async run(): Promise<void> {
    const { signal, clock, logger, hostId } = this.#options;
    let resyncAt = clock.now() + limits.resyncMs;
    while (!this.#ended) {
      try {
        const nextAt = Math.min(
          resyncAt,
          this.#retries.nextAt((lane) => this.#running.has(lane)),
        );
        await this.#changed.wait(undefined, Math.max(0, nextAt - clock.now()));
        if (clock.now() >= resyncAt) {
          this.#resync = true;
          resyncAt = clock.now() + limits.resyncMs;
        }
        await this.#round();
      } catch (error) {
        if (this.#ended) return;
        logger.error({ err: error, hostId }, 'a reconcile round failed; the next one plans for the whole host');
        this.#resync = true;
        await clock.sleep(limits.stepBackoffBaseMs, signal).catch(() => undefined);
      }
    }
  }

  async #round(): Promise<void> {
    const now = this.#options.clock.now();
    for (const id of this.#retries.due(now)) this.#dirty.add(id);
    for (const step of await this.#plan()) {
      if (this.#ended) return;
      const running = this.#running.get(laneOf(step));
      if (running !== undefined) {
        if (supersedes(step, running.step)) running.superseded.abort();
      } else if (this.#running.size >= limits.stepsPerHost) this.#dirty.add(stepSubject(step).id);
      else if (!this.#retries.mustWait(step, now)) this.#begin(step);
    }
  }

  async #plan(): Promise<readonly Step[]> {
    const { store, hostId } = this.#options;
    const ids = [...this.#dirty];
    this.#dirty.clear();
    if (this.#resync) {
      this.#resync = false;
      return planHost(await store.sandboxes.onHost(hostId), [...this.#copies.values()]);
    }
    const steps: Step[] = [];
    for (const id of ids) {
      const row = await store.sandboxes.get(id);
      const here = row?.hostId === hostId && row.deletedAt === undefined ? row : undefined;
      const copy = this.#copies.get(id);
      for (const [lane, step] of [[networkLane(id), planNetwork(here, copy)] as const, [id, planSandbox(here, copy)] as const]) {
        if (step === undefined) this.#retries.forget(lane);
        else steps.push(step);
      }
    }
    return steps;
  }

  #begin(step: Step): void {
    const lane = laneOf(step);
    const superseded = new AbortController();
    this.#running.set(lane, { step, superseded });
    void this.#run(step, superseded.signal).finally(() => {
      this.#running.delete(lane);
      this.wake(stepSubject(step).id);
    });
  }

  /** Never rejects. */
  async #run(step: Step, signal: AbortSignal): Promise<void> {
    const { store, hub, secrets, clock, logger, hostId, onAbsent } = this.#options;
    const { id, generation } = stepSubject(step);
    const began = clock.now();
    try {
      const copy = await executeStep(step, { store, hub, secrets, hostId, signal });
      if (copy === undefined) {
        this.#copies.delete(id);
        onAbsent(id);
      } else this.observed([copy]);
      this.#retries.succeeded(step);
      logger.debug({ hostId, sandboxId: id, step: step.kind, generation, tookMs: clock.now() - began }, 'reconciled');
    } catch (thrown) {
      if (signal.aborted) return;
      const known = publicError(thrown, (errorId) => logger.error({ err: thrown, errorId }, 'a step failed unexpectedly'));
      await this.#failed(step, known).catch((error: unknown) => {
        logger.error({ err: error, hostId, sandboxId: id, step: step.kind }, 'the failure of a step could not be stored; retrying');
        this.#retries.failed(step, clock.now());
      });
    }
  }

  async #failed(step: Step, error: DroverError): Promise<void> {
    const { store, clock, logger, hostId } = this.#options;
    const { id, generation } = stepSubject(step);
    const { code, message, hint = '' } = error;
    const tries = this.#retries.failures(step) + 1;
    // The host itself has already retried a registry.
    const mayPass = error.transient && error.code !== 'registry-unreachable';
    const final = beginsRun(step) && (!mayPass || tries >= limits.startAttempts);
    logger.warn({ hostId, sandboxId: id, step: step.kind, generation, tries, final, code: error.code, err: error }, 'a step failed');
    if (final) {
      this.#retries.forget(laneOf(step));
      const row = await store.sandboxes.get(id);
      // A start that was requested since then has its own attempts.
      if (row !== undefined && row.startGeneration <= generation) await store.sandboxes.fail(id, { reason: code, message, hint });
      return;
    }
    const retryInMs = this.#retries.failed(step, clock.now());
    if (tries > 1) return;
    const data = { step: step.kind, hostId, code, message, ...(hint !== '' && { hint }), retryInMs };
    await store.events.append([{ kind: 'sandbox', type: 'SandboxStepFailed', subject: id, data }]);
  }
}
