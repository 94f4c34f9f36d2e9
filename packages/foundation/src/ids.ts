import { randomBytes } from 'node:crypto';
import { DroverError } from './errors.ts';

declare const brand: unique symbol;
/** A string that was parsed: it cannot be made by assignment. */
export type Branded<T extends string> = string & { readonly [brand]: T };

export type HostId = Branded<'host'>;
export type SandboxId = Branded<'sandbox'>;

/** Crockford's base 32 in lower case: no i, l, o, u. */
const alphabet = '0123456789abcdefghjkmnpqrstvwxyz';
const idLength = 16;

function randomPart(): string {
  let out = '';
  for (const byte of randomBytes(idLength)) out += alphabet[byte & 31];
  return out;
}

const hostPattern = /^h-[0-9a-hjkmnp-tv-z]{16}$/;
const sandboxPattern = /^sb-[0-9a-hjkmnp-tv-z]{16}$/;

/** A new host id, `h-` and 80 random bits. A valid DNS label. */
export function newHostId(): HostId {
  return `h-${randomPart()}` as HostId;
}

/** A new sandbox id, `sb-` and 80 random bits. A valid DNS label and OCI container id. */
export function newSandboxId(): SandboxId {
  return `sb-${randomPart()}` as SandboxId;
}

/** A new id for commands, tunnels and execs: `prefix-` and 80 random bits. */
export function newId(prefix: string): string {
  return `${prefix}-${randomPart()}`;
}

export function isHostId(text: string): text is HostId {
  return hostPattern.test(text);
}

export function isSandboxId(text: string): text is SandboxId {
  return sandboxPattern.test(text);
}

/** @throws {DroverError} invalid-argument */
export function parseHostId(text: string): HostId {
  if (isHostId(text)) return text;
  throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} is not a host id`, {
    hint: 'a host id looks like h-0123456789abcdef; `drover host ls` lists them',
  });
}

/** @throws {DroverError} invalid-argument */
export function parseSandboxId(text: string): SandboxId {
  if (isSandboxId(text)) return text;
  throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} is not a sandbox id`, {
    hint: 'a sandbox id looks like sb-0123456789abcdef; `drover sandbox ls` lists them',
  });
}

/** At most `max` characters of what came from outside, for messages. */
export function clip(text: string, max = 100): string {
  return text.length <= max ? text : `${text.slice(0, max)}…`;
}
