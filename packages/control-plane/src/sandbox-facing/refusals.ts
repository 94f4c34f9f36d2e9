import { DroverError, type Logger, type SandboxId } from '@drover/foundation';
import type { RegisterRefusal } from '../identity/index.ts';
import { retainedRefusals } from '../limits.ts';
import type { SandboxStore } from '../store/index.ts';
import type { TrustCheck, Worldview } from '../worldview/index.ts';
import type { Caller } from './caller.ts';

/** Refuses a caller. On the wire every refusal is the same (I-16). The cause is the reason for the log, `refusal` the reason for the session. */
export class Refused extends DroverError {
  readonly refusal: RegisterRefusal | undefined;
  readonly checks: readonly TrustCheck[];

  constructor(why: string, refusal?: RegisterRefusal, checks: readonly TrustCheck[] = []) {
    super('permission-denied', 'the identity was not accepted', { cause: new Error(why) });
    this.refusal = refusal;
    this.checks = checks;
  }
}

/** The last refusal of each sandbox's Register. Only calls through the sandbox's own host count. */
export class Refusals {
  readonly #last = new Map<SandboxId, { readonly thumbprint: string; readonly refusal: RegisterRefusal }>();
  readonly #sandboxes: Pick<SandboxStore, 'get'>;
  readonly #worldview: Pick<Worldview, 'record'>;
  readonly #logger: Logger;

  constructor(sandboxes: Pick<SandboxStore, 'get'>, worldview: Pick<Worldview, 'record'>, logger: Logger) {
    this.#sandboxes = sandboxes;
    this.#worldview = worldview;
    this.#logger = logger;
  }

  /** Ignores the refusal of another certificate, such as that of an earlier start. */
  last(id: SandboxId, thumbprint: string): RegisterRefusal | undefined {
    const last = this.#last.get(id);
    return last?.thumbprint === thumbprint ? last.refusal : undefined;
  }

  welcomed(id: SandboxId, checks: readonly TrustCheck[]): void {
    this.#last.delete(id);
    this.#worldview.record(id, checks);
  }

  /**
   * Records a refused Register, if its certificate is a sandbox's and the call came through the host of this sandbox. A stolen key that is
   * used elsewhere must not change the state of its sandbox. Never throws.
   */
  async note({ certificate, hostId }: Caller, { refusal, checks }: Refused): Promise<void> {
    if (certificate === undefined || refusal === undefined) return;
    const { sandboxId, thumbprint } = certificate;
    try {
      if ((await this.#sandboxes.get(sandboxId))?.hostId !== hostId) return;
    } catch (error) {
      this.#logger.error({ err: error, sandboxId }, 'a refused registration could not be recorded');
      return;
    }
    // The newest is last. Beyond the limit the oldest are dropped.
    this.#last.delete(sandboxId);
    this.#last.set(sandboxId, { thumbprint, refusal });
    for (const oldest of this.#last.keys()) {
      if (this.#last.size <= retainedRefusals) break;
      this.#last.delete(oldest);
    }
    if (checks.length > 0) this.#worldview.record(sandboxId, checks);
  }
}
