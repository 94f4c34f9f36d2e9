import { DroverError } from '@drover/foundation';
import { invalid, quote } from '../invalid.ts';
import { maxPolicyRules } from '../limits.ts';
import { coversHost } from './host-pattern.ts';
import type { Host } from './host.ts';
import { formatRule, parseRule, parseShortRule, type Action, type Rule, type RuleDocument } from './rule.ts';

/** The version of the policy language. */
export const policyVersion = 1;

/**
 * What a sandbox may reach (G-12). Rules have no order: deny wins over allow, allow over observe, and what no rule covers is denied.
 * They are sorted and differ from each other, so that policies with the same rules are equal.
 */
export interface Policy {
  /** Names of shared rule sets. */
  readonly extends: readonly string[];
  readonly rules: readonly Rule[];
}

/** A policy as it is written in a file, in JSON and on the wire. */
export interface PolicyDocument {
  readonly version: number;
  readonly extends?: readonly string[] | undefined;
  readonly rules?: readonly RuleDocument[] | undefined;
}

/** The default of a sandbox: nothing. */
export const emptyPolicy: Policy = { extends: [], rules: [] };

/** @throws {DroverError} invalid-argument */
export function parsePolicy(document: PolicyDocument): Policy {
  if (document.version !== policyVersion) {
    throw invalid(`there is no version ${document.version} of the policy language`, `write version: ${policyVersion}`);
  }
  return policyOf((document.rules ?? []).map(parseRule), document.extends ?? []);
}

/** The policy of `--allow`: rules in their short form. @throws {DroverError} invalid-argument */
export function parseAllowList(allow: readonly string[]): Policy {
  return policyOf(allow.map(parseShortRule), []);
}

/** One policy with the rules of both. @throws {DroverError} invalid-argument for too many rules */
export function mergePolicies(one: Policy, other: Policy): Policy {
  return policyOf([...one.rules, ...other.rules], [...one.extends, ...other.extends]);
}

/** The document that `parsePolicy` reads as this policy. */
export function formatPolicy({ extends: sets, rules }: Policy): PolicyDocument {
  return { version: policyVersion, ...(sets.length > 0 && { extends: sets }), rules: rules.map(formatRule) };
}

/**
 * Returns the policy if today's gateway enforces all of it: hosts, ports, and the protocols that an explicit proxy carries. A rule that
 * it would ignore must not be accepted. @throws {DroverError} unimplemented naming the rule
 */
export function requireEnforced(policy: Policy): Policy {
  const [set] = policy.extends;
  if (set !== undefined) throw unenforced(`the policy extends ${set}`);
  for (const { text, methods, paths, credentials, action, protocol } of policy.rules) {
    if (methods.length > 0) throw unenforced(`the rule ${text} names methods`);
    if (paths.length > 0) throw unenforced(`the rule ${text} names paths`);
    if (credentials.length > 0) throw unenforced(`the rule ${text} adds credentials`);
    if (action === 'observe') throw unenforced(`the rule ${text} asks to observe`);
    if (protocol !== undefined && protocol !== 'http' && protocol !== 'tcp') throw unenforced(`the rule ${text} is for ${protocol} alone`);
  }
  return policy;
}

/** A policy as a message carries it: its rules, and those that older clients write in their short form. */
export interface PolicyInput {
  readonly allow: readonly string[];
  readonly policy?: PolicyDocument | undefined;
}

/** @throws {DroverError} invalid-argument; unimplemented for what the gateway does not enforce yet */
export function parseSandboxPolicy({ allow, policy }: PolicyInput): Policy {
  const short = parseAllowList(allow);
  return requireEnforced(policy === undefined ? short : mergePolicies(short, parsePolicy(policy)));
}

/** What a client of the egress proxy asks for. */
export interface EgressRequest {
  readonly host: Host;
  readonly port: number;
  /** `http`: a request that the proxy reads. `tcp`: a tunnel (CONNECT), whose bytes it does not. */
  readonly protocol: 'http' | 'tcp';
}

export interface Verdict {
  readonly allowed: boolean;
  /** The rule that decides; undefined: no rule covers the request, which denies it. */
  readonly rule: Rule | undefined;
}

/** The verdict of a policy on a request, by the requested name: its addresses are judged where they are resolved (G-16). */
export function evaluate(policy: Policy, request: EgressRequest): Verdict {
  const covering = policy.rules.filter((rule) => coversConnection(rule, request) && coversHost(rule.host, request.host));
  const rule = decidingRule(covering);
  return { allowed: rule !== undefined && rule.action !== 'deny', rule };
}

/** Whether a rule is for this port and protocol. */
export function coversConnection({ ports, protocol }: Rule, request: Pick<EgressRequest, 'port' | 'protocol'>): boolean {
  return ports.includes(request.port) && (protocol === undefined || protocol === request.protocol);
}

/** Deny wins over allow, and allow over observe. */
function decidingRule(rules: readonly Rule[]): Rule | undefined {
  return rules.toSorted((a, b) => precedence.indexOf(a.action) - precedence.indexOf(b.action))[0];
}

const precedence: readonly Action[] = ['deny', 'allow', 'observe'];

const setPattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

function policyOf(rules: readonly Rule[], sets: readonly string[]): Policy {
  const byText = new Map(rules.map((rule) => [rule.text, rule]));
  const names = new Set(sets);
  if (byText.size > maxPolicyRules || names.size > maxPolicyRules) {
    throw invalid(
      `the policy has ${Math.max(byText.size, names.size)} rules`,
      `use at most ${maxPolicyRules}; *.HOST or a network stands for many hosts`,
    );
  }
  const wrong = sets.find((name) => !setPattern.test(name));
  if (wrong !== undefined) throw invalid(`${quote(wrong)} is not a set of rules`, 'write the name of a set, such as npm');
  return {
    extends: [...names].toSorted(),
    rules: [...byText.values()].toSorted((a, b) => (a.text < b.text ? -1 : 1)),
  };
}

function unenforced(what: string): DroverError {
  return new DroverError('unimplemented', `${what}, which the gateway does not enforce yet`, {
    hint: 'leave it out: rules have a host, ports, the protocol http or tcp, and the action allow or deny',
  });
}
