import { createHash, randomBytes } from 'node:crypto';
import { DroverError } from '@drover/foundation';
import type { JoinTokenParts } from './pki.ts';

const pattern = /^drv1\.([0-9a-f]{64})\.([A-Za-z0-9_-]{43})$/;

/** 256 random bits, base64url. */
export function newSecret(): string {
  return randomBytes(32).toString('base64url');
}

/** The hash of a secret, lower-case hex, which the store keeps instead. Secrets are random and long, so a plain hash suffices. */
export function hashSecret(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}

/** A join token as printed (L-1). */
export function formatJoinToken(parts: JoinTokenParts): string {
  return `drv1.${parts.caFingerprint}.${parts.secret}`;
}

/** @throws {DroverError} invalid-argument */
export function parseJoinToken(token: string): JoinTokenParts {
  const match = pattern.exec(token.trim());
  if (match?.[1] === undefined || match[2] === undefined) {
    throw new DroverError('invalid-argument', 'this is not a join token', {
      hint: 'copy the whole token that `drover host token` printed; it begins with drv1.',
    });
  }
  return { caFingerprint: match[1], secret: match[2] };
}
