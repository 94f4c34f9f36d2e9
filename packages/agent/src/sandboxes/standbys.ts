import { existsSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import { Backoff, DroverError, newSandboxId, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { standbyFile } from '@drover/init';
import { createKeyAndRequest, type KeyAndRequest } from '@drover/pki';
import {
  maxDefaultStandbys,
  memoryPerStandby,
  standbyLookMs,
  standbyReadyMs,
  standbyRestMs,
  standbyRetryCapMs,
  standbyRetryMs,
} from '../limits.ts';
import type { Network } from '../network/network.ts';
import type { NetworkAttachment, Runtime } from '../runtimes/runtime.ts';
import { runDirectoryOf } from './run-directory.ts';

/** An init that has started and waits for a sandbox to be of (`Runtime.standBy`). */
export interface Standby {
  readonly id: SandboxId;
  readonly runtime: Runtime;
  readonly network: NetworkAttachment;
  /** For the certificate of whatever sandbox it becomes (I-6). */
  readonly key: KeyAndRequest;
}

export interface StandbysOptions {
  readonly stateDirectory: string;
  readonly initDirectory: string;
  readonly runtime: Runtime;
  readonly network: Network;
  readonly logger: Logger;
  readonly clock: Clock;
  /** How many wait; 0: none. */
  readonly count: number;
  /** No more are made once it is aborted. */
  readonly signal: AbortSignal;
}

/** How many a host of this size keeps. */
export function defaultStandbys(memoryBytes = totalmem()): number {
  return Math.min(maxDefaultStandbys, Math.floor(memoryBytes / memoryPerStandby));
}

/**
 * Keeps standbys ready, so that a create finds most of its work done. They are made one at a time and only while no sandbox is being
 * started. What is left of them at the end of this process is swept by the next, as their inits end with it.
 */
export class Standbys {
  readonly #options: StandbysOptions;
  readonly #ready: Standby[] = [];
  #starts = 0;
  #lastStart = Number.NEGATIVE_INFINITY;
  readonly #retry = new Backoff({ baseMs: standbyRetryMs, capMs: standbyRetryCapMs });
  #filling: Promise<void> | undefined;
  readonly #closing = new AbortController();
  readonly #signal: AbortSignal;

  constructor(options: StandbysOptions) {
    this.#options = options;
    this.#signal = AbortSignal.any([options.signal, this.#closing.signal]);
  }

  /** One that is ready, from now on the caller's; undefined when there is none. */
  take(runtime: Runtime): Standby | undefined {
    if (runtime !== this.#options.runtime) return undefined;
    const standby = this.#ready.shift();
    if (standby !== undefined) void this.#removeRunDirectory(standby.id);
    this.fill();
    return standby;
  }

  /** Until that is disposed of, a start is under way. */
  startUnderWay(): Disposable {
    this.#starts++;
    return {
      [Symbol.dispose]: () => {
        this.#starts--;
        this.#lastStart = this.#options.clock.now();
      },
    };
  }

  /** Takes one away that was not given to the runtime. */
  async discard({ id, runtime, network }: Pick<Standby, 'id' | 'runtime' | 'network'>): Promise<void> {
    try {
      await runtime.destroy(id);
      await this.#options.network.unreserve(network);
      await this.#removeRunDirectory(id);
    } catch (error) {
      // Nobody waits for it, and the next start of the agent sweeps it.
      this.#options.logger.warn({ err: error, standby: id }, 'a standby could not be taken away');
    }
  }

  /** Makes what is missing, in the background. */
  fill(): void {
    this.#filling ??= this.#fill().finally(() => (this.#filling = undefined));
  }

  /** Takes all of them away. */
  async close(): Promise<void> {
    this.#closing.abort(new DroverError('cancelled', 'the host agent ends'));
    await this.#filling;
    await Promise.all(this.#ready.splice(0).map(async (standby) => await this.discard(standby)));
  }

  async #fill(): Promise<void> {
    const { count, clock, runtime, logger } = this.#options;
    const signal = this.#signal;
    while (!signal.aborted && this.#ready.length < count && runtime.standBy !== undefined) {
      const rest = this.#starts > 0 ? standbyRestMs : this.#lastStart + standbyRestMs - clock.now();
      try {
        if (rest > 0) await clock.sleep(rest, signal);
        else if (!(await this.#make(runtime.standBy))) return;
        else this.#retry.reset();
      } catch (error) {
        if (signal.aborted) return;
        const againInMs = standbyRestMs + this.#retry.nextMs();
        logger.warn({ err: error, againInMs }, 'no sandbox could be made ahead');
        await clock.sleep(againInMs, signal).catch(() => undefined);
      }
    }
  }

  /** @returns false when there is no room for one */
  async #make(standBy: NonNullable<Runtime['standBy']>): Promise<boolean> {
    const { network, runtime, stateDirectory, initDirectory } = this.#options;
    const attachment = await network.reserve();
    if (attachment === undefined) return false;
    const standby = { id: newSandboxId(), runtime, network: attachment };
    const runDirectory = runDirectoryOf(stateDirectory, standby.id);
    try {
      await mkdir(runDirectory, { recursive: true, mode: 0o700 });
      await standBy({ id: standby.id, network: attachment, initDirectory, runDirectory }, this.#signal);
      const key = await createKeyAndRequest();
      await this.#untilReady(join(runDirectory, standbyFile));
      this.#ready.push({ ...standby, key });
      return true;
    } catch (error) {
      await this.discard(standby);
      throw error;
    }
  }

  async #untilReady(path: string): Promise<void> {
    const { clock } = this.#options;
    const deadline = clock.now() + standbyReadyMs;
    while (!existsSync(path)) {
      if (clock.now() >= deadline) throw new DroverError('timed-out', `a standby was not ready after ${standbyReadyMs} ms`);
      await clock.sleep(standbyLookMs, this.#signal);
    }
  }

  async #removeRunDirectory(id: SandboxId): Promise<void> {
    await rm(runDirectoryOf(this.#options.stateDirectory, id), { recursive: true, force: true }).catch((error: unknown) => {
      this.#options.logger.warn({ err: error, standby: id }, 'the run directory of a standby stays until the agent starts again');
    });
  }
}
