import { DroverError } from '@drover/foundation';
import type ipaddr from 'ipaddr.js';
import { limits } from '../limits.ts';
import { forbiddenRange, type Forbidden } from './forbidden.ts';
import type { Host } from './host.ts';
import { containsAddress, isSingle, matchesHost, networkEnds, parsePattern, type Pattern } from './pattern.ts';

/** The destinations of one sandbox; the default is deny. */
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

/** Finds the rule that names the requested destination, before its name is resolved. */
export function judgeHost(policy: Policy | undefined, host: Host, port: number): Verdict {
  const pattern = policy?.patterns.find((p) => matchesHost(p, host, port));
  return pattern === undefined ? { allowed: false, rule: 'no rule' } : { allowed: true, rule: pattern.text };
}

/**
 * Decides whether an address may be dialled for a destination that a rule names (G-16). A public address may. An address in a
 * forbidden range opens only by a rule for addresses, at its port, as `Forbidden` says; a network opens a range only when the whole
 * network lies in it, so that 0.0.0.0/0 means the public addresses.
 */
export function judgeAddress(
  policy: Policy | undefined,
  address: ipaddr.IPv4 | ipaddr.IPv6,
  port: number,
  own: ReadonlySet<string>,
): Verdict {
  const forbidden = forbiddenRange(address, own);
  const explicit = policy?.patterns.find((p) => p.ports.includes(port) && opens(p, address, forbidden, own));
  if (explicit !== undefined) return { allowed: true, rule: explicit.text };
  if (forbidden === undefined) return { allowed: true, rule: 'public address' };
  return { allowed: false, rule: `forbidden address (${forbidden.range})` };
}

function opens(pattern: Pattern, address: ipaddr.IPv4 | ipaddr.IPv6, forbidden: Forbidden | undefined, own: ReadonlySet<string>): boolean {
  if (!containsAddress(pattern, address)) return false;
  if (forbidden === undefined) return true;
  if (isSingle(pattern)) return forbidden.opensBy !== 'never';
  return forbidden.opensBy === 'range' && networkEnds(pattern).every((end) => forbiddenRange(end, own)?.range === forbidden.range);
}
