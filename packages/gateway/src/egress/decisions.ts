import type { Logger } from '@drover/foundation';
import { limits } from '../limits.ts';

/** A decision of the proxy about one request or tunnel (G-18). */
export interface Decision {
  readonly sandbox: string;
  readonly address: string;
  readonly method: string;
  readonly host: string;
  readonly port: number;
  readonly allowed: boolean;
  readonly rule: string;
  /** The version of the policy table. */
  readonly version: bigint;
}

/**
 * Writes decisions to the log: allowed ones at debug, refusals at info, a bounded number per second and sandbox, so that a program that tries
 * in a loop fills no disk.
 */
export class DecisionLog {
  readonly #logger: Logger;
  readonly #now: () => number;
  readonly #windows = new Map<string, { second: number; logged: number; suppressed: number }>();

  constructor(logger: Logger, now: () => number = Date.now) {
    this.#logger = logger;
    this.#now = now;
  }

  record(decision: Decision): void {
    const { version, ...fields } = decision;
    const entry = { ...fields, policyVersion: String(version) };
    if (decision.allowed) {
      this.#logger.debug(entry, 'egress allowed');
      return;
    }
    const second = Math.floor(this.#now() / 1000);
    const window = this.#windows.get(decision.address);
    if (window === undefined || window.second !== second) {
      // Addresses come from one pool, which bounds the map.
      this.#windows.set(decision.address, { second, logged: 1, suppressed: 0 });
      this.#logger.info({ ...entry, ...(window?.suppressed ? { suppressedBefore: window.suppressed } : {}) }, 'egress refused');
    } else if (window.logged < limits.refusalsLoggedPerSecond) {
      window.logged++;
      this.#logger.info(entry, 'egress refused');
    } else {
      window.suppressed++;
    }
  }
}
