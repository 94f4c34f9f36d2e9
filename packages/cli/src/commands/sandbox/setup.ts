import { closeSync, openSync, readSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { DroverError, reasonOf } from '@drover/foundation';
import { parseConfig } from '@drover/foundation/config';
import type { sandbox } from '@drover/protocol';
import { setupToWire } from '@drover/protocol/spec';
import { maxSetupBytes, maxSetupScriptBytes } from '@drover/spec';
import { parseSetup, type Setup } from '@drover/spec/setup';
import { z } from 'zod';
import { maxConfigFileBytes } from '../../limits.ts';

export interface SetupFlags {
  /** A YAML file: docs/setup.md. */
  readonly setup?: string;
  /** A file with a script. */
  readonly postInit?: string;
}

/** As `readSetup`, for the API. */
export function readSetupMessage(flags: SetupFlags, secrets: ReadonlySet<string>): sandbox.Setup | undefined {
  const setup = readSetup(flags, secrets);
  return setup === undefined ? undefined : setupToWire(setup);
}

/**
 * The setup of `--setup` and `--post-init` (I-29); undefined without them.
 * @param secrets names of the sandbox's secrets: the only ones that a file may name
 * @throws {DroverError} invalid-config with file, line, column and field; invalid-argument, too-large
 */
export function readSetup({ setup: file, postInit: scriptFile }: SetupFlags, secrets: ReadonlySet<string>): Setup | undefined {
  const script = (): string => (scriptFile === undefined ? '' : readText('--post-init', scriptFile, maxSetupScriptBytes));
  if (file === undefined) return scriptFile === undefined ? undefined : parseSetup({ postInit: script() }, secrets);
  const scriptOf = (ownScript: string | undefined): string => {
    if (ownScript === undefined || scriptFile === undefined) return ownScript ?? script();
    throw new DroverError('invalid-argument', `--post-init ${scriptFile} and the postInit of ${file} are two scripts`, {
      hint: 'leave one of them out',
    });
  };
  const text = readText('--setup', file, maxConfigFileBytes);
  try {
    return parseConfig(file, text, setupOf(dirname(resolve(file)), secrets, scriptOf));
  } catch (error) {
    if (!(error instanceof DroverError) || error.code !== 'invalid-config') throw error;
    throw new DroverError(error.code, error.message, { hint: 'mend the file; docs/setup.md shows all that it can hold', cause: error });
  }
}

const mode = z
  // YAML reads 0640 as the number 640, and 0o640 as 416.
  .string('write the mode in quotes, as chmod takes it: "0640"')
  .regex(/^0?[0-7]{3}$/, 'write the mode as chmod takes it, such as "0640"; no more than the nine permission bits')
  .transform((text) => Number.parseInt(text, 8))
  .refine((bits) => bits !== 0, 'must let somebody read the file');

/**
 * The shape of a setup file; `parseSetup` reads what is in it.
 * @param directory where the paths of contentFrom and postInitFrom start
 * @param scriptOf the script to run, by the one in the file
 */
function setupOf(directory: string, secrets: ReadonlySet<string>, scriptOf: (own: string | undefined) => string): z.ZodType<Setup> {
  const local = (maxBytes: number) =>
    z.string().transform((path, context) => {
      try {
        return readText('', resolve(directory, path), maxBytes);
      } catch (error) {
        context.addIssue({ code: 'custom', message: DroverError.from(error).message });
        return z.NEVER;
      }
    });
  const file = z
    .strictObject({
      path: z.string(),
      content: z.string().optional(),
      contentFrom: local(maxSetupBytes).optional(),
      secret: z.string().optional(),
      mode: mode.default(0),
    })
    .transform(({ path, content, contentFrom, secret, mode: bits }, context) => {
      if ([content, contentFrom, secret].filter((source) => source !== undefined).length !== 1) {
        context.addIssue({ code: 'custom', message: 'needs one of content, contentFrom and secret, and no more' });
      }
      const text = { case: 'content', value: content ?? contentFrom ?? '' } as const;
      const source = secret === undefined ? text : ({ case: 'secret', value: secret } as const);
      return { path, source, mode: bits };
    });
  const settings = z.record(z.string(), z.union([z.string(), z.number(), z.boolean()]).transform(String));
  const clone = z.strictObject({ url: z.string(), path: z.string(), ref: z.string().default('') });
  return z
    .strictObject({
      files: z.array(file).default([]),
      git: z.strictObject({ config: settings.default({}), clones: z.array(clone).default([]) }).default({ config: {}, clones: [] }),
      ssh: z
        .strictObject({
          knownHosts: z.array(z.string()).default([]),
          keys: z.array(z.string()).default([]),
          config: z.string().default(''),
        })
        .default({ knownHosts: [], keys: [], config: '' }),
      postInit: z.string().optional(),
      postInitFrom: local(maxSetupScriptBytes).optional(),
    })
    .refine(({ postInit, postInitFrom }) => postInit === undefined || postInitFrom === undefined, {
      path: ['postInitFrom'],
      error: 'is a second script beside postInit',
    })
    .transform(({ postInit, postInitFrom, ...setup }, context) =>
      parseSetup({ ...setup, postInit: scriptOf(postInit ?? postInitFrom) }, secrets, ({ message }, path) =>
        context.addIssue({ code: 'custom', path: [...path], message }),
      ),
    );
}

/** A file of the caller's, which may be a pipe: `<(…)`. @throws {DroverError} invalid-argument, too-large */
function readText(flag: string, path: string, maxBytes: number): string {
  const what = flag === '' ? path : `${flag} ${path}`;
  // One byte above the limit shows that the file is too large.
  const buffer = Buffer.alloc(maxBytes + 1);
  let size = 0;
  try {
    const file = openSync(path, 'r');
    try {
      for (let read = -1; read !== 0 && size <= maxBytes; size += read) read = readSync(file, buffer, size, buffer.length - size, null);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw new DroverError('invalid-argument', `${what} cannot be read: ${reasonOf(error)}`, {
      hint: 'name a file that there is',
      cause: error,
    });
  }
  if (size > maxBytes) {
    throw new DroverError('too-large', `${what} is larger than ${maxBytes} bytes`, { hint: 'copy large files with drover cp' });
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(buffer.subarray(0, size));
  } catch (error) {
    throw new DroverError('invalid-argument', `${what} is not text (UTF-8)`, {
      hint: 'pass it as a secret file, or copy it with drover cp',
      cause: error,
    });
  }
}
