import { createReadStream } from 'node:fs';
import { isatty } from 'node:tty';
import { DroverError, reasonOf } from '@drover/foundation';
import type { Secret } from '@drover/sdk';
import { maxSecretBytes, parseSecretName } from '@drover/spec';

export interface SecretFlags {
  /** As variables. */
  readonly secret?: readonly string[];
  /** As files in /run/secrets. */
  readonly secretFile?: readonly string[];
}

export interface SecretSources {
  readonly env: NodeJS.ProcessEnv;
  /** The command reads the caller's stdin. */
  readonly stdinTaken: boolean;
  readonly stdin: NodeJS.ReadableStream;
}

/**
 * The secrets of `--secret` and `--secret-file`: `NAME` is the caller's own variable of that name, `NAME=@FILE` is a file's
 * content, `NAME=-` is read from stdin. A value itself is refused: every user of the machine can read a command line.
 * One line break at the end of a file or of stdin is left out of a variable, and kept in a file.
 * @throws {DroverError} invalid-argument, too-large; no message holds a value
 */
export async function readSecrets(flags: SecretFlags, sources: SecretSources): Promise<readonly Secret[]> {
  const asked = [
    ...(flags.secret ?? []).map((entry) => ({ flag: '--secret', target: 'environment' as const, ...parseEntry('--secret', entry) })),
    ...(flags.secretFile ?? []).map((entry) => ({ flag: '--secret-file', target: 'file' as const, ...parseEntry('--secret-file', entry) })),
  ];
  const fromStdin = asked.filter(({ source }) => source === '-');
  if (fromStdin.length > 1) throw invalid('only one secret can be read from stdin', 'pass the others as NAME=@FILE');
  if (fromStdin.length > 0 && sources.stdinTaken) {
    throw invalid("stdin cannot be the command's and a secret's", 'add --no-stdin, or pass the secret as NAME=@FILE');
  }
  const secrets: Secret[] = [];
  for (const { flag, name, target, source } of asked) {
    if (source === undefined) {
      const value = sources.env[name];
      if (value === undefined)
        throw invalid(`${flag} ${name}: you have no variable ${name}`, 'set and export it, or use NAME=@FILE or NAME=-');
      secrets.push({ name, target, value });
      continue;
    }
    if (source === '-' && sources.stdin === process.stdin && isatty(0)) {
      throw invalid(`${flag} ${name}=-: a terminal would show what you type`, `pipe it: COMMAND | drover … ${flag} ${name}=-`);
    }
    const value = await readBounded(name, source === '-' ? sources.stdin : createReadStream(source.slice(1)), source);
    secrets.push({ name, target, value: target === 'environment' ? withoutLineBreak(value) : value });
  }
  return secrets;
}

/** The names alone, without reading anything. @throws {DroverError} invalid-argument */
export function secretNames(flags: SecretFlags): ReadonlySet<string> {
  return new Set([
    ...(flags.secret ?? []).map((entry) => parseEntry('--secret', entry).name),
    ...(flags.secretFile ?? []).map((entry) => parseEntry('--secret-file', entry).name),
  ]);
}

function parseEntry(flag: string, entry: string): { readonly name: string; readonly source: string | undefined } {
  const at = entry.indexOf('=');
  const name = at < 0 ? entry : entry.slice(0, at);
  parseSecretName(name, flag === '--secret' ? 'environment' : 'file');
  const source = at < 0 ? undefined : entry.slice(at + 1);
  if (source === undefined || source === '-' || (source.startsWith('@') && source.length > 1)) return { name, source };
  // Not repeated here: a message ends in logs.
  throw invalid(
    `${flag} ${name}: a secret on a command line can be read by every user of this machine`,
    `export ${name} and write ${flag} ${name}, or use ${name}=@FILE or ${name}=-`,
  );
}

async function readBounded(name: string, stream: NodeJS.ReadableStream, source: string): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of stream) {
      chunks.push(Buffer.from(chunk));
      size += chunk.length;
      if (size > maxSecretBytes)
        throw new DroverError('too-large', `the secret ${name} is larger than ${maxSecretBytes} bytes`, {
          hint: 'copy large files into the sandbox with drover cp',
        });
    }
  } catch (error) {
    if (error instanceof DroverError) throw error;
    const from = source === '-' ? 'stdin' : source.slice(1);
    throw new DroverError('invalid-argument', `the secret ${name} cannot be read from ${from}: ${reasonOf(error)}`, {
      hint: 'name a file that there is, or use NAME=- for stdin',
      cause: error,
    });
  }
  return Buffer.concat(chunks);
}

function withoutLineBreak(value: Buffer): Buffer {
  if (value.at(-1) !== 0x0a) return value;
  return value.subarray(0, value.at(-2) === 0x0d ? -2 : -1);
}

function invalid(message: string, hint: string): DroverError {
  return new DroverError('invalid-argument', message, { hint });
}
