import { createHash } from 'node:crypto';
import { DroverError } from '@drover/foundation';

/** A digest of the image-spec (descriptor.md), `algorithm:hex`, with an algorithm that Drover computes. */
export interface Digest {
  readonly algorithm: 'sha256' | 'sha512';
  readonly hex: string;
}

/** @throws {DroverError} corrupt-image */
export function parseDigest(text: string): Digest {
  const match = /^(sha256):([0-9a-f]{64})$|^(sha512):([0-9a-f]{128})$/.exec(text);
  if (match === null) {
    throw new DroverError('corrupt-image', `${JSON.stringify(text.slice(0, 160))} is not a digest that Drover knows`, {
      hint: 'digests are sha256: or sha512: and lower-case hexadecimal digits',
    });
  }
  return match[1] === undefined ? { algorithm: 'sha512', hex: match[4] as string } : { algorithm: 'sha256', hex: match[2] as string };
}

/** `sha256-…`, as a file name. */
export function fileNameOf(digest: string): string {
  const { algorithm, hex } = parseDigest(digest);
  return `${algorithm}-${hex}`;
}

export function digestOf(data: string | Uint8Array, algorithm: Digest['algorithm'] = 'sha256'): string {
  return `${algorithm}:${createHash(algorithm).update(data).digest('hex')}`;
}
