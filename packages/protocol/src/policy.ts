import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { formatPolicy, mergePolicies, parseAllowList, parsePolicy, requireEnforced, type Policy } from '@drover/spec/policy';
import { PolicySchema, type Policy as WirePolicy } from './generated/drover/sandbox/v1/sandbox_pb.ts';

/**
 * The policy that a message carries: its rules, and those that older clients write in their short form.
 * @throws {DroverError} invalid-argument; unimplemented for what the gateway does not enforce yet
 */
export function policyFromWire({ allow, policy }: { readonly allow: readonly string[]; readonly policy?: WirePolicy | undefined }): Policy {
  const short = parseAllowList(allow);
  return requireEnforced(policy === undefined ? short : mergePolicies(short, parsePolicy(policy)));
}

export function policyToWire(policy: Policy): WirePolicy {
  return create(PolicySchema, formatPolicy(policy) as MessageInitShape<typeof PolicySchema>);
}
