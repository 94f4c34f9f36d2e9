import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { formatPolicy, mergePolicies, parseAllowList, parsePolicy, requireEnforced, type Policy } from '@drover/spec/policy';
import type { Setup } from '@drover/spec/setup';
import { PolicySchema, SetupSchema, type Policy as WirePolicy, type Setup as WireSetup } from './generated/drover/sandbox/v1/sandbox_pb.ts';

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

/** Without what is empty. */
export function setupToWire({ files, git, ssh, postInit }: Setup): WireSetup {
  const { config, clones } = git;
  const { knownHosts, keys } = ssh;
  return create(SetupSchema, {
    files: files.map(({ path, source, mode }) => ({ path, source, mode })),
    ...((Object.keys(config).length > 0 || clones.length > 0) && { git: { config: { ...config }, clones: [...clones] } }),
    ...((knownHosts.length > 0 || keys.length > 0 || ssh.config !== '') && {
      ssh: { knownHosts: [...knownHosts], keys: [...keys], config: ssh.config },
    }),
    postInit,
  });
}
