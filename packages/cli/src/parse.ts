import { isUtf8 } from 'node:buffer';
import { isIP } from 'node:net';
import { clip, DroverError, formatBytes, readAtMost, reasonOf } from '@drover/foundation';
import { parseBytes, parseLabel, parseVariableName } from '@drover/spec';
import { requireTextVariable } from './arguments.ts';
import { maxConfigFileBytes } from './limits.ts';

/**
 * The command to run in a sandbox, from the words behind IMAGE or SANDBOX: a leading `--` is left out.
 * @param before what flags of Drover's own stand before, for the hint
 * @param hasEntrypoint an image may have a program that takes flags as its arguments
 * @throws {DroverError} invalid-argument when it begins with a flag and nothing could take it
 */
export function parseCommand(words: readonly string[], before: 'IMAGE' | 'SANDBOX', hasEntrypoint: boolean): readonly string[] {
  const [first] = words;
  if (first === '--') return words.slice(1);
  if (first?.startsWith('-') !== true || hasEntrypoint) return words;
  throw new DroverError('invalid-argument', `the command begins with ${JSON.stringify(clip(first))}, which is no program`, {
    hint: `flags of drover itself stand before ${before}; what follows ${before} is the command to run`,
  });
}

/** `NAME=value`, or `NAME` to take the caller's own. Unset, a bare NAME is left out. @throws {DroverError} invalid-argument */
export function parseEnv(entries: readonly string[], own: NodeJS.ProcessEnv): Record<string, string> {
  const result: Record<string, string> = {};
  for (const entry of entries) {
    const at = entry.indexOf('=');
    const name = at < 0 ? entry : entry.slice(0, at);
    parseVariableName(name);
    const value = at < 0 ? own[name] : entry.slice(at + 1);
    if (value === undefined) continue;
    if (at < 0) requireTextVariable(name, value);
    result[name] = value;
  }
  return result;
}

/** The entries of an environment file: a `NAME=value` a line, empty lines and lines with # left out. @throws {DroverError} */
export async function readEnvFile(path: string): Promise<readonly string[]> {
  let text: string;
  try {
    const content = await readAtMost(path, maxConfigFileBytes);
    if (content.byteLength > maxConfigFileBytes)
      throw new DroverError('too-large', `the environment file ${path} is larger than ${maxConfigFileBytes} bytes`, {
        hint: 'put large values into files, and mount or copy them',
      });
    if (!isUtf8(content)) {
      const line =
        content
          .toString('latin1')
          .split('\n')
          .findIndex((bytes) => !isUtf8(Buffer.from(bytes, 'latin1'))) + 1;
      throw new DroverError('invalid-argument', `line ${line} of the environment file ${path} is not UTF-8`, {
        hint: 'put such a value in a file and copy that in',
      });
    }
    text = content.toString('utf8');
  } catch (error) {
    if (error instanceof DroverError) throw error;
    throw new DroverError('invalid-argument', `the environment file ${path} cannot be read: ${reasonOf(error)}`, {
      hint: 'name a file that there is: a NAME=value a line',
      cause: error,
    });
  }
  return text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
}

/** @throws {DroverError} invalid-argument */
export function parseLabels(entries: readonly string[]): Record<string, string> {
  return Object.fromEntries(entries.map(parseLabel));
}

/** Rules in their short form, canonical. @throws {DroverError} invalid-argument */
export async function parseAllow(texts: readonly string[]): Promise<string[]> {
  if (texts.length === 0) return [];
  // Only here: the library for addresses would add milliseconds to every command.
  const { parseShortRule } = await import('@drover/spec/policy');
  return texts.map((text) => parseShortRule(text).text);
}

/**
 * The size that a flag asks for. The control plane has the same limits, but cannot name the flag and its text.
 * @throws {DroverError} invalid-argument
 */
export function parseSize(flag: string, text: string, leastBytes = 1, mostBytes = Number.MAX_SAFE_INTEGER): number {
  const bytes = parseBytes(text);
  if (bytes >= leastBytes && bytes <= mostBytes) return bytes;
  const [what, hint] =
    bytes < leastBytes ? ['small', `at least ${formatBytes(leastBytes)}`] : ['large', `at most ${formatBytes(mostBytes)}`];
  throw new DroverError('invalid-argument', `${flag} ${JSON.stringify(clip(text))} is too ${what}`, { hint: `give ${hint}` });
}

/** `LOCAL:REMOTE` or one port for both; LOCAL may be 0, and `ADDRESS:LOCAL:REMOTE` listens elsewhere than on 127.0.0.1. */
export function parseForward(text: string): { address: string; local: number; remote: number } {
  const match = /^(?:(?:([0-9.]+|\[[0-9a-f:]+\]|[a-z0-9.-]*[a-z][a-z0-9.-]*):)?(\d{1,5}):)?(\d{1,5})$/i.exec(text);
  const remote = Number(match?.[3]);
  const local = match?.[2] === undefined ? remote : Number(match[2]);
  const address = (match?.[1] ?? '127.0.0.1').replace(/^\[|\]$/g, '');
  // The system takes a number for an IPv4 address: 18082 for 0.0.70.162.
  const isAddress = isIP(address) !== 0 || /[a-z]/i.test(address);
  if (match === null || !isAddress || remote < 1 || remote > 65_535 || local > 65_535) {
    throw new DroverError('invalid-argument', `${JSON.stringify(clip(text))} is not a pair of ports`, {
      hint: 'write LOCAL:REMOTE, such as 8080:80, or ADDRESS:LOCAL:REMOTE; LOCAL may be 0 for any free port',
    });
  }
  return { address, local, remote };
}
