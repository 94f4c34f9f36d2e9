import type { Branded } from '@drover/foundation';
import { invalid, quote } from './invalid.ts';
import { maxExecIdLength } from './limits.ts';

export const runtimeNames = ['oci', 'docker', 'microvm', 'fake'] as const;
/** A program that runs sandboxes. */
export type RuntimeName = (typeof runtimeNames)[number];
/** A DNS label; empty: the sandbox's name. */
export type Hostname = Branded<'hostname'> | '';
/** Of one execution of a command in a sandbox. */
export type ExecId = Branded<'exec'>;

/** @throws {DroverError} invalid-argument */
export function parseRuntimeName(text: string): RuntimeName {
  const found = runtimeNames.find((name) => name === text);
  if (found !== undefined) return found;
  throw invalid(`there is no runtime ${quote(text)}`, '`drover host ls` shows the runtimes of the hosts');
}

/** @throws {DroverError} invalid-argument */
export function parseHostname(text: string): Hostname {
  if (text === '' || /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/.test(text)) return text as Hostname;
  throw invalid(`${quote(text)} cannot be a hostname`, 'use letters, digits and hyphens, at most 63');
}

/** The name of a host: a DNS name. @throws {DroverError} invalid-argument */
export function parseHostName(text: string): string {
  if (/^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/.test(text)) return text;
  throw invalid(`${quote(text)} cannot be a host's name`, 'use letters, digits, dots and hyphens');
}

/** @throws {DroverError} invalid-argument */
export function parseExecId(text: string): ExecId {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(text) && text.length <= maxExecIdLength) return text as ExecId;
  throw invalid(`${quote(text)} cannot be an exec id`, `use at most ${maxExecIdLength} letters, digits, dots, underscores and hyphens`);
}

/** How a secret reaches a sandbox. */
export type SecretTarget = 'environment' | 'file';

const maxSecretNameLength = 128;

/** The name of a secret, which becomes that of its variable or its file. @throws {DroverError} invalid-argument */
export function parseSecretName(text: string, target: SecretTarget): string {
  // A file whose name begins with a dot would be hidden, or `..`.
  const pattern = target === 'environment' ? /^[A-Za-z_][A-Za-z0-9_]*$/ : /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/;
  if (pattern.test(text) && text.length <= maxSecretNameLength) return text;
  throw target === 'environment'
    ? invalid(`${quote(text)} cannot be the name of an environment variable`, 'use letters, digits and _, beginning with no digit')
    : invalid(`${quote(text)} cannot be the name of a secret`, 'use letters, digits, dots, hyphens and _');
}
