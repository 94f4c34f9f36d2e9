import {
  containsAddress,
  coversConnection,
  isSingleAddress,
  networkEnds,
  type Address,
  type EgressRequest,
  type Policy,
  type Rule,
} from '@drover/spec/policy';
import { forbiddenRange, type Forbidden } from './forbidden.ts';

export interface AddressVerdict {
  readonly allowed: boolean;
  /** The rule that decides, or what does without one. */
  readonly rule: string;
}

/**
 * Decides whether an address may be dialled for a request that the policy allows by name (G-16). A public address may. An address in a
 * forbidden range opens only by a rule for addresses that covers the connection, as `Forbidden` defines; a network opens a range only when
 * the whole network lies in it, so that 0.0.0.0/0 means the public addresses. A rule that denies the address wins over all of these.
 * @param own the host's own addresses
 */
export function judgeAddress(
  policy: Policy,
  address: Address,
  request: Pick<EgressRequest, 'port' | 'protocol'>,
  own: ReadonlySet<string>,
): AddressVerdict {
  const rules = policy.rules.filter((rule) => coversConnection(rule, request) && containsAddress(rule.host, address));
  const denying = rules.find(({ action }) => action === 'deny');
  if (denying !== undefined) return { allowed: false, rule: denying.text };
  const forbidden = forbiddenRange(address, own);
  const allowing = rules.find((rule) => forbidden === undefined || opens(rule, forbidden, own));
  if (allowing !== undefined) return { allowed: true, rule: allowing.text };
  return forbidden === undefined
    ? { allowed: true, rule: 'public address' }
    : { allowed: false, rule: `forbidden address (${forbidden.range})` };
}

/** Whether a rule that contains an address opens it, although its range is forbidden. */
function opens({ host }: Rule, forbidden: Forbidden, own: ReadonlySet<string>): boolean {
  if (isSingleAddress(host)) return forbidden.opensBy !== 'never';
  return forbidden.opensBy === 'range' && networkEnds(host).every((end) => forbiddenRange(end, own)?.range === forbidden.range);
}
