import { limits } from '../limits.ts';
import type { Decision } from './decisions.ts';

/** Refused attempts of one sandbox at one destination. */
export interface RefusalReport {
  readonly sandbox: string;
  readonly method: string;
  readonly host: string;
  readonly port: number;
  readonly rule: string;
  /** Attempts since the previous report. */
  readonly count: number;
  /** Of the last of them. Milliseconds since the epoch. */
  readonly at: number;
}

interface Group {
  readonly decision: Decision;
  reportedAt: number;
  count: number;
  at: number;
}

/**
 * Groups refusals into reports for people (G-18): the first attempt at a destination is reported immediately, repeated ones once per
 * `refusalQuietMs` with their number. A program that tries in a loop causes one report a minute.
 */
export class RefusalReports {
  readonly #groups = new Map<string, Map<string, Group>>();
  readonly #waiting: RefusalReport[] = [];
  readonly #now: () => number;
  #listener: ((report: RefusalReport) => void) | undefined;

  constructor(now: () => number = Date.now) {
    this.#now = now;
  }

  /** Passes waiting and later reports to the listener, which replaces an earlier one. Returns how to stop. */
  listen(listener: (report: RefusalReport) => void): () => void {
    this.#listener = listener;
    for (const report of this.#waiting.splice(0)) listener(report);
    return () => {
      if (this.#listener === listener) this.#listener = undefined;
    };
  }

  record(decision: Decision): void {
    if (decision.allowed || decision.sandbox === '') return;
    const at = this.#now();
    let groups = this.#groups.get(decision.sandbox);
    if (groups === undefined) this.#groups.set(decision.sandbox, (groups = new Map()));
    const key = `${decision.host} ${decision.port} ${decision.rule}`;
    const group = groups.get(key);
    if (group !== undefined) {
      group.count++;
      group.at = at;
      if (at - group.reportedAt >= limits.refusalQuietMs) this.#report(group);
      return;
    }
    if (groups.size >= limits.refusalsReportedPerSandbox) return;
    const added: Group = { decision, reportedAt: 0, count: 1, at };
    groups.set(key, added);
    this.#report(added);
  }

  /** Reports counted attempts whose quiet time is over, and drops groups without any. Called periodically. */
  sweep(): void {
    const now = this.#now();
    for (const [sandbox, groups] of this.#groups) {
      for (const [key, group] of groups) {
        if (now - group.reportedAt < limits.refusalQuietMs) continue;
        if (group.count > 0) this.#report(group);
        else groups.delete(key);
      }
      if (groups.size === 0) this.#groups.delete(sandbox);
    }
  }

  #report(group: Group): void {
    const { sandbox, method, host, port, rule } = group.decision;
    const report: RefusalReport = { sandbox, method, host, port, rule, count: group.count, at: group.at };
    group.count = 0;
    group.reportedAt = this.#now();
    if (this.#listener !== undefined) {
      this.#listener(report);
      return;
    }
    if (this.#waiting.length >= limits.refusalsWaiting) this.#waiting.shift();
    this.#waiting.push(report);
  }
}
