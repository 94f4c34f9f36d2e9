import { DroverError } from '@drover/foundation';
import type { SecretFile } from '@drover/init';
import { sandbox } from '@drover/protocol';
import { secretsTmpfsSize } from '../limits.ts';

/** The secrets of one start, by the way they reach the sandbox. They are in memory only, until the start is done. */
export interface PlacedSecrets {
  /** `NAME=value`. */
  readonly env: readonly string[];
  readonly files: readonly SecretFile[];
}

/** @throws {DroverError} failed-precondition when a value is missing */
export function placeSecrets(mounts: readonly sandbox.SecretMount[], values: readonly sandbox.SecretValue[]): PlacedSecrets {
  const env: string[] = [];
  const files: SecretFile[] = [];
  for (const { name, target } of mounts) {
    const found = values.find((value) => value.name === name);
    if (found === undefined) throw new DroverError('failed-precondition', `the secret ${name} did not come with the start`);
    const bytes = Buffer.from(found.value);
    if (target === sandbox.SecretTarget.FILE) files.push({ name, value: bytes.toString('base64') });
    else env.push(`${name}=${bytes.toString('utf8')}`);
  }
  return { env, files };
}

/** A tmpfs is needed only where a secret is a file. */
export function secretsTmpfsBytes(mounts: readonly sandbox.SecretMount[]): { readonly secretsBytes?: number } {
  return mounts.some(({ target }) => target === sandbox.SecretTarget.FILE) ? { secretsBytes: secretsTmpfsSize } : {};
}
