import { Backoff, DroverError, Notifier, sentenceOf, type Clock, type HostId, type Logger, type SandboxId } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import type { Hub } from '../hub/index.ts';
import * as limits from '../limits.ts';
import type { SecretBox } from '../secrets/index.ts';
import type { SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';
import { executeStep, stepSubject } from './execute.ts';
import { planHost, planNetwork, planSandbox, type Step } from './plan.ts';

export interface HostLoopOptions {
  readonly store: Store;
  readonly hub: Hub;
  readonly secrets: SecretBox;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly hostId: HostId;
  /** Fences the loop: what it writes under an older epoch is dropped by the store (L-11, L-28). */
  readonly epoch: number;
  /** This link's stream. */
  readonly signal: AbortSignal;
  readonly seen: readonly sandbox.SandboxObservation[];
  readonly random?: () => number;
  /** The store holds what the host answered of it. */
  readonly onSeen: (id: SandboxId) => void;
  readonly onGone: (id: SandboxId) => void;
}

/** The last step of a sandbox, and when it may be tried again: it failed, or it was done and is planned again all the same. */
interface Rest {
  readonly id: SandboxId;
  readonly generation: number;
  readonly kind: Step['kind'];
  readonly backoff: Backoff;
  /** Undefined: it was done. */
  until: number | undefined;
}

/**
 * Drives one connected host to what is wanted of it (L-22), as long as its stream lives. It is level-triggered: it can plan at any
 * moment from what is stored and seen; being told of a change only says when to look. Steps of different sandboxes run at once,
 * those of one sandbox one after another, but for its network's, which wait for no other (I-4).
 */
export class HostLoop {
  readonly #options: HostLoopOptions;
  readonly #changed: Notifier;
  readonly #seen = new Map<string, sandbox.SandboxObservation>();
  readonly #dirty = new Set<SandboxId>();
  /** What is under way; `superseded` ends the waiting for it (L-21). */
  readonly #busy = new Map<Lane, { readonly step: Step; readonly superseded: AbortController }>();
  readonly #resting = new Map<Lane, Rest>();
  #everything = true;
  #over = false;

  constructor(options: HostLoopOptions) {
    this.#options = options;
    this.#changed = new Notifier(options.clock);
    // In place of a signal that each wait listens to: thousands of hosts have nothing to do, and wait.
    options.signal.addEventListener('abort', () => this.end(), { once: true });
    if (options.signal.aborted) this.end();
    this.observed(options.seen);
  }

  /** Takes in what the host saw; an older sequence than the one held is dropped. */
  observed(observations: readonly sandbox.SandboxObservation[]): void {
    for (const copy of observations) {
      const held = this.#seen.get(copy.sandboxId);
      if (held !== undefined && held.sequence > copy.sequence) continue;
      this.#seen.set(copy.sandboxId, copy);
      this.#dirty.add(copy.sandboxId as SandboxId);
    }
    this.#changed.notify();
  }

  /** Looks at one sandbox again, or at all. */
  poke(id?: SandboxId): void {
    if (id === undefined) this.#everything = true;
    else this.#dirty.add(id);
    this.#changed.notify();
  }

  /** Ends the loop, and the waiting for what is under way; the steps themselves go on on the host (L-21). Again: nothing. */
  end(): void {
    this.#over = true;
    for (const { superseded } of this.#busy.values()) superseded.abort();
    this.#changed.notify();
  }

  /** Runs until the stream ends (L-16), or `end`. */
  async run(): Promise<void> {
    const { signal, clock, logger, hostId } = this.#options;
    let resyncAt = clock.now() + limits.resyncMs;
    while (!this.#over) {
      try {
        await this.#changed.wait(undefined, Math.max(0, Math.min(resyncAt, this.#nextRestEnd()) - clock.now()));
        if (clock.now() >= resyncAt) {
          this.#everything = true;
          resyncAt = clock.now() + limits.resyncMs;
        }
        await this.#round();
      } catch (error) {
        if (this.#over) return;
        logger.error({ err: error, hostId }, 'a reconcile round failed; all of the host is looked at again');
        this.#everything = true;
        // Only the stream's end rejects it, and the loop looks at that.
        await clock.sleep(limits.stepBackoffBaseMs, signal).catch(() => undefined);
      }
    }
  }

  async #round(): Promise<void> {
    const now = this.#options.clock.now();
    for (const { id, until } of this.#resting.values()) if (until !== undefined && until <= now) this.#dirty.add(id);
    for (const step of await this.#plan()) {
      if (this.#over) return;
      const underWay = this.#busy.get(laneOf(step));
      if (underWay !== undefined) {
        if (supersedes(step, underWay.step)) underWay.superseded.abort();
      } else if (this.#busy.size >= limits.stepsPerHost) this.#dirty.add(stepSubject(step).id);
      else if (!this.#rests(step, now)) this.#begin(step);
    }
  }

  async #plan(): Promise<readonly Step[]> {
    const { store, hostId } = this.#options;
    if (this.#everything) {
      this.#everything = false;
      this.#dirty.clear();
      const wanted = await store.sandboxes.onHost(hostId);
      return planHost(wanted, [...this.#seen.values()]);
    }
    const ids = [...this.#dirty];
    this.#dirty.clear();
    const steps: Step[] = [];
    for (const id of ids) {
      const row = await store.sandboxes.get(id);
      const here = row?.hostId === hostId && row.deletedAt === undefined ? row : undefined;
      const copy = this.#seen.get(id);
      for (const [lane, step] of [[networkLane(id), planNetwork(here, copy)] as const, [id, planSandbox(here, copy)] as const]) {
        if (step === undefined) this.#resting.delete(lane);
        else steps.push(step);
      }
    }
    return steps;
  }

  /** A new wish, or another step than the one that failed, does not have to wait. */
  #rests(step: Step, now: number): boolean {
    const rest = this.#restOf(step);
    if (rest === undefined) {
      this.#resting.delete(laneOf(step));
      return false;
    }
    // The host said that it was done, and it is to be done again: not in a hot loop.
    rest.until ??= now + rest.backoff.nextMs();
    return rest.until > now;
  }

  #begin(step: Step): void {
    const lane = laneOf(step);
    const superseded = new AbortController();
    this.#busy.set(lane, { step, superseded });
    void this.#run(step, superseded.signal).finally(() => {
      this.#busy.delete(lane);
      this.poke(stepSubject(step).id);
    });
  }

  /** Never rejects. */
  async #run(step: Step, signal: AbortSignal): Promise<void> {
    const { store, hub, secrets, clock, logger, hostId, epoch } = this.#options;
    const { id, generation } = stepSubject(step);
    const began = clock.now();
    try {
      const outcome = await executeStep(step, { store, hub, secrets, hostId, epoch, signal });
      if (outcome.kind === 'seen') {
        this.observed([outcome.copy]);
        this.#options.onSeen(id);
      } else this.#absent(id);
      this.#restFor(step).until = undefined;
      logger.debug({ hostId, sandboxId: id, step: step.kind, generation, tookMs: clock.now() - began }, 'reconciled');
    } catch (thrown) {
      if (signal.aborted) return;
      await this.#failed(step, DroverError.from(thrown)).catch((error: unknown) => {
        logger.error(
          { err: error, hostId, sandboxId: id, step: step.kind },
          'the failure of a step could not be written; it is tried again',
        );
        this.#rest(step, this.#delay(step));
      });
    }
  }

  async #failed(step: Step, error: DroverError): Promise<void> {
    const { store, logger, hostId } = this.#options;
    const { id, generation } = stepSubject(step);
    const tries = (this.#restOf(step)?.backoff.attempts ?? 0) + 1;
    // The host has tried a registry often enough itself.
    const mayPass = error.transient && error.code !== 'registry-unreachable';
    const final = begins(step) && (!mayPass || tries >= limits.startAttempts);
    logger.warn({ hostId, sandboxId: id, step: step.kind, generation, tries, final, code: error.code, err: error }, 'a step failed');
    if (final) {
      this.#resting.delete(laneOf(step));
      const row = await store.sandboxes.get(id);
      // Asked to start again meanwhile: that start has a try of its own.
      if (row !== undefined && row.startGeneration <= generation) await store.sandboxes.fail(id, error.code, sentenceOf(error));
      return;
    }
    const retryInMs = this.#delay(step);
    this.#rest(step, retryInMs);
    if (tries === 1) {
      const data = { step: step.kind, hostId, code: error.code, message: sentenceOf(error), retryInMs };
      await store.events.append([{ kind: 'sandbox', type: 'SandboxStepFailed', subject: id, data }]);
    }
  }

  #absent(id: SandboxId): void {
    this.#seen.delete(id);
    this.#options.onGone(id);
  }

  #restOf(step: Step): Rest | undefined {
    const { generation } = stepSubject(step);
    const rest = this.#resting.get(laneOf(step));
    return rest?.generation === generation && rest.kind === step.kind ? rest : undefined;
  }

  #delay(step: Step): number {
    return this.#restFor(step).backoff.nextMs();
  }

  #rest(step: Step, ms: number): void {
    this.#restFor(step).until = this.#options.clock.now() + ms;
  }

  #restFor(step: Step): Rest {
    const known = this.#restOf(step);
    if (known !== undefined) return known;
    const { id, generation } = stepSubject(step);
    const { random } = this.#options;
    const backoff = new Backoff({
      baseMs: limits.stepBackoffBaseMs,
      capMs: limits.stepBackoffCapMs,
      ...(random === undefined ? {} : { random }),
    });
    const rest: Rest = { id, generation, kind: step.kind, backoff, until: 0 };
    this.#resting.set(laneOf(step), rest);
    return rest;
  }

  #nextRestEnd(): number {
    let next = Number.POSITIVE_INFINITY;
    for (const [lane, rest] of this.#resting) {
      if (rest.until !== undefined && !this.#busy.has(lane)) next = Math.min(next, rest.until);
    }
    return next;
  }
}

/** Steps of one lane are done one after another: a sandbox's own, and those of its network. */
type Lane = SandboxId | `${SandboxId} network`;

function networkLane(id: SandboxId): Lane {
  return `${id} network`;
}

function laneOf(step: Step): Lane {
  const { id } = stepSubject(step);
  return step.kind === 'cut' ? networkLane(id) : id;
}

/** Is the one under way no longer waited for, since the host is to hear this one at once? */
function supersedes(step: Step, underWay: Step): boolean {
  // Nobody waits for an image of a sandbox that is not wanted any more: the host is told so, and gives the making up.
  if (begins(underWay)) return !begins(step);
  // I-4: nor for the grace of a stop that is to be shorter. The stop itself goes on.
  return underWay.kind === 'stop' && (step.kind === 'destroy' || (step.kind === 'stop' && isShorter(step.row, underWay.row)));
}

/** 0 is the host's own. */
function isShorter({ stopGraceMs: a }: SandboxRow, { stopGraceMs: b }: SandboxRow): boolean {
  return a > 0 && (b === 0 || a < b);
}

function begins({ kind }: Step): boolean {
  return kind === 'create' || kind === 'start';
}
