import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { formatPolicy, type Policy } from '@drover/spec/policy';
import type { Setup } from '@drover/spec/setup';
import { PolicySchema, SetupSchema, type Policy as WirePolicy, type Setup as WireSetup } from './generated/drover/sandbox/v1/sandbox_pb.ts';

export function policyToWire(policy: Policy): WirePolicy {
  return create(PolicySchema, formatPolicy(policy) as MessageInitShape<typeof PolicySchema>);
}

/** Omits empty parts. */
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
