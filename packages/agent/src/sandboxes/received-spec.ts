import type { sandbox } from '@drover/protocol';
import { parseSandboxSpec, type SandboxSpec } from '@drover/spec/sandbox';

/** The specification of a sandbox, with the message that the record on disk keeps. */
export interface ReceivedSpec extends SandboxSpec {
  readonly message: sandbox.SandboxSpec;
}

/** @throws {DroverError} invalid-argument, invalid-name, invalid-image-reference, unimplemented */
export function receiveSpec(message: sandbox.SandboxSpec): ReceivedSpec {
  return { ...parseSandboxSpec(message), message };
}
