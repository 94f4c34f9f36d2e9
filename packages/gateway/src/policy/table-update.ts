import { create } from '@bufbuild/protobuf';
import { gatewayv1 } from '@drover/protocol';
import { policyToWire } from '@drover/protocol/spec';
import { parseSandboxPolicy } from '@drover/spec/policy';
import type { TableUpdate } from './table.ts';

export function updateToWire({ version, base, policies, removed }: TableUpdate): gatewayv1.ApplyPoliciesRequest {
  return create(gatewayv1.ApplyPoliciesRequestSchema, {
    version,
    ...(base !== undefined && { baseVersion: base }),
    policies: policies.map(({ sandboxId, address, policy }) => ({ sandboxId, address, policy: policyToWire(policy) })),
    removed: [...removed],
  });
}

/** @throws {DroverError} invalid-argument, unimplemented */
export function updateFromWire({ version, baseVersion, policies, removed }: gatewayv1.ApplyPoliciesRequest): TableUpdate {
  return {
    version,
    base: baseVersion,
    policies: policies.map(({ sandboxId, address, ...rest }) => ({ sandboxId, address, policy: parseSandboxPolicy(rest) })),
    removed,
  };
}
