import { DroverError } from '@drover/foundation';
import type { SecretFile } from '@drover/init';
import { sandbox } from '@drover/protocol';
import { secretsTmpfsSize } from '../limits.ts';

/** The secrets of one start, by how they reach the sandbox. They are in memory only, and gone when the start is done. */
export interface PlacedSecrets {
  /** `NAME=value`. */
  readonly env: readonly string[];
  readonly files: readonly SecretFile[];
}

/** @throws {DroverError} failed-precondition when a value is missing: a sandbox does not start without what it needs */
export function placeSecrets(wanted: readonly sandbox.SecretMount[], values: readonly sandbox.SecretValue[]): PlacedSecrets {
  const env: string[] = [];
  const files: SecretFile[] = [];
  for (const { name, target } of wanted) {
    const found = values.find((value) => value.name === name);
    if (found === undefined) throw new DroverError('failed-precondition', `the secret ${name} did not come with the start`);
    const bytes = Buffer.from(found.value);
    if (target === sandbox.SecretTarget.FILE) files.push({ name, value: bytes.toString('base64') });
    else env.push(`${name}=${bytes.toString('utf8')}`);
  }
  return { env, files };
}

/** What the runtime is asked for: a tmpfs where there is a file to put into it. */
export function secretsTmpfsBytes(wanted: readonly sandbox.SecretMount[]): { readonly secretsBytes?: number } {
  return wanted.some(({ target }) => target === sandbox.SecretTarget.FILE) ? { secretsBytes: secretsTmpfsSize } : {};
}
