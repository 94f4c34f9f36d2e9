import { errnoOf, reasonOf } from '@drover/foundation';
import { maxRegistryAnswerBytes } from '../../limits.ts';
import type { Credentials } from './credential-helper.ts';

/** One address of a registry: the registry itself or a mirror of it. */
export interface Endpoint {
  /** `https://host:port`, with a prefix for some mirrors; no slash at its end. */
  readonly base: string;
  /** Whether plain HTTP and certificates that do not verify are permitted. */
  readonly insecure: boolean;
  readonly credentials: Credentials | undefined;
}

export function hostOf({ base }: Endpoint): string {
  return new URL(base).host;
}

/** The beginning of a response's text. */
export async function readText(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of body) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > maxRegistryAnswerBytes) break;
  }
  return Buffer.concat(chunks).toString('utf8');
}

export function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

/** Why a host could not be reached, for a person. */
export function networkReason(error: unknown): string {
  if (error instanceof AggregateError && error.errors[0] instanceof Error) return reasonOf(error.errors[0]);
  if (error instanceof Error && errnoOf(error) === undefined) return error.message || codeOf(error);
  return reasonOf(error);
}
