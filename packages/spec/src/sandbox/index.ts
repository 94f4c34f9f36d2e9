/** The specification of a sandbox, as control plane and agent read it from the wire. */
export type { Resources } from './resources.ts';
export { parseSandboxSpec, parseStopGraceMs, type SandboxSpec, type SandboxSpecInput } from './sandbox-spec.ts';
