import { DroverError } from '@drover/foundation';
import type ipaddr from 'ipaddr.js';
import { limits } from '../limits.ts';
import { forbiddenRange } from './forbidden.ts';
import type { Host } from './host.ts';
import { containsAddress, matchesHost, parsePattern, type Pattern } from './pattern.ts';

/** What one sandbox may reach; default deny. */
export interface Policy {
  readonly sandboxId: string;
  /** The version of the table that it came with. */
  readonly version: bigint;
  readonly patterns: readonly Pattern[];
}

export type Verdict =
  | { readonly allowed: true; readonly rule: string }
  /** `rule` is "no rule" when nothing names the destination, else what forbids it. */
  | { readonly allowed: false; readonly rule: string };

/** @throws {DroverError} invalid-argument, for the first entry that is not a pattern */
export function compilePolicy(sandboxId: string, allow: readonly string[], version: bigint): Policy {
  if (allow.length > limits.patternsPerSandbox) {
    throw new DroverError(
      'invalid-argument',
      `${allow.length} hosts are allowed to one sandbox; the most is ${limits.patternsPerSandbox}`,
      {
        hint: 'use *.HOST or a network for many hosts',
      },
    );
  }
  return { sandboxId, version, patterns: allow.map(parsePattern) };
}

/** Does a rule name the destination that was asked for? Nothing is resolved yet. */
export function judgeHost(policy: Policy | undefined, host: Host, port: number): Verdict {
  const pattern = policy?.patterns.find((p) => matchesHost(p, host, port));
  return pattern === undefined ? { allowed: false, rule: 'no rule' } : { allowed: true, rule: pattern.text };
}

/**
 * May this address be dialled for a destination that a rule names? An address in a forbidden range opens only by a rule
 * that names it, or a network around it, together with the port (G-16).
 */
export function judgeAddress(
  policy: Policy | undefined,
  address: ipaddr.IPv4 | ipaddr.IPv6,
  port: number,
  own: ReadonlySet<string>,
): Verdict {
  const explicit = policy?.patterns.find((p) => p.ports.includes(port) && containsAddress(p, address));
  if (explicit !== undefined) return { allowed: true, rule: explicit.text };
  const range = forbiddenRange(address, own);
  return range === undefined ? { allowed: true, rule: 'public address' } : { allowed: false, rule: `forbidden address (${range})` };
}
