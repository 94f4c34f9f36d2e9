/** Policies: what a sandbox may reach (G-12). The gateway adds what it knows of addresses. */
export { containsAddress, isSingleAddress, networkEnds, type HostPattern } from './host-pattern.ts';
export { formatHost, parseAddress, parseAuthority, parseHost, unmapped, type Address, type Host } from './host.ts';
export {
  coversConnection,
  emptyPolicy,
  evaluate,
  formatPolicy,
  mergePolicies,
  parseAllowList,
  parsePolicy,
  parseSandboxPolicy,
  policyVersion,
  requireEnforced,
  type EgressRequest,
  type Policy,
  type PolicyDocument,
  type PolicyInput,
  type Verdict,
} from './policy.ts';
export { formatRule, parseRule, parseShortRule, type Action, type Protocol, type Rule, type RuleDocument } from './rule.ts';
