export { describe, describeNew, describeOne, factsOf } from './facts.ts';
export { eventToWire, hostError, hostFailure, hostToWire, sandboxToWire } from './messages.ts';
export { checkToWire, identityStatusToWire, identityToWire, initToWire, type SandboxFacts, sessionToWire } from './status.ts';
