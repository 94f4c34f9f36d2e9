import { closeSync, openSync, readSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { clip, DroverError, reasonOf } from '@drover/foundation';
import { parseConfig } from '@drover/foundation/config';
import type { sandbox } from '@drover/protocol';
import { maxGitClones, maxKnownHosts, maxSetupBytes, maxSetupFiles, maxSetupScriptBytes } from '@drover/spec';
import { z } from 'zod';
import { maxConfigFileBytes } from '../../limits.ts';

export interface SetupFlags {
  /** A YAML file: docs/setup.md. */
  readonly setup?: string;
  /** A file with a script. */
  readonly postInit?: string;
}

type SetupInit = MessageInitShape<typeof sandbox.SetupSchema>;

/**
 * What `--setup` and `--post-init` say (I-29); undefined without them.
 * @param secrets names of the sandbox's secrets: the only ones that a file may name
 * @throws {DroverError} invalid-config with file, line, column and field; invalid-argument, too-large
 */
export function readSetup(flags: SetupFlags, secrets: ReadonlySet<string>): SetupInit | undefined {
  const { setup: file, postInit: scriptFile } = flags;
  const setup = file === undefined ? undefined : parseSetup(file, readText('--setup', file, maxConfigFileBytes), secrets);
  if (scriptFile === undefined) return setup;
  if (setup !== undefined && setup.postInit !== '') {
    throw new DroverError('invalid-argument', `--post-init ${scriptFile} and the postInit of ${file} are two scripts`, {
      hint: 'leave one of them out',
    });
  }
  return { ...setup, postInit: readText('--post-init', scriptFile, maxSetupScriptBytes) };
}

function parseSetup(path: string, text: string, secrets: ReadonlySet<string>): SetupInit & { readonly postInit: string } {
  try {
    return parseConfig(path, text, schemaOf(dirname(resolve(path)), secrets));
  } catch (error) {
    if (!(error instanceof DroverError)) throw error;
    throw new DroverError(error.code, error.message, { hint: 'mend the file; docs/setup.md shows all that it can hold', cause: error });
  }
}

const line = z.string().regex(/^[^\p{Cc}]+$/u, 'must be one line of text');

const place = z
  .string()
  .min(1, 'is empty')
  .max(4096, 'is longer than 4096 characters')
  .refine((path) => !/\p{Cc}/u.test(path), 'holds a control character')
  .transform((path) => path.replace(/^~\//, ''))
  .refine((path) => !path.split('/').some((part) => part === '..' || part === '.') && !path.startsWith('~'), {
    error: "write a path from /, or one below the user's home directory, without . and ..",
  });

const mode = z
  // YAML reads 0640 as the number 640, and 0o640 as 416.
  .string('write the mode in quotes, as chmod takes it: "0640"')
  .regex(/^0?[0-7]{3}$/, 'write the mode as chmod takes it, such as "0640"; no more than the nine permission bits')
  .transform((text) => Number.parseInt(text, 8))
  .refine((bits) => bits !== 0, 'a file that nobody may read is of no use');

/** git-config(1), Syntax: a section, perhaps a subsection, and a name. */
const gitKey = /^[A-Za-z0-9-]+\.(?:[^\n\0]+\.)?[A-Za-z][A-Za-z0-9-]*$/;

/** @param directory where the paths of contentFrom and postInitFrom begin */
function schemaOf(directory: string, secrets: ReadonlySet<string>): z.ZodType<SetupInit & { readonly postInit: string }> {
  const secret = z.string().refine((name) => secrets.has(name), {
    error: ({ input }) => `there is no secret ${JSON.stringify(clip(String(input)))}: name one that --secret or --secret-file gives`,
  });

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
      path: place.refine((path) => !path.endsWith('/'), 'names a directory: end it with the name of a file'),
      content: z.string().optional(),
      contentFrom: local(maxSetupBytes).optional(),
      secret: secret.optional(),
      mode: mode.optional(),
    })
    .transform(({ path, content, contentFrom, secret: name, mode: bits = 0 }, context) => {
      const given = [content, contentFrom, name].filter((source) => source !== undefined);
      if (given.length !== 1) {
        context.addIssue({ code: 'custom', message: 'needs one of content, contentFrom and secret, and no more' });
        return z.NEVER;
      }
      const text = content ?? contentFrom;
      const source = text === undefined ? ({ case: 'secret', value: name ?? '' } as const) : ({ case: 'content', value: text } as const);
      return { path, source, mode: bits };
    });

  const clone = z.strictObject({
    url: line.refine((url) => !url.startsWith('-'), 'is not the address of a repository'),
    path: place,
    ref: line.refine((ref) => !ref.startsWith('-'), 'is not a branch, a tag or a commit').optional(),
  });

  const config = z.record(z.string(), z.union([z.string(), z.number(), z.boolean()]).transform(String)).superRefine((entries, context) => {
    for (const key of Object.keys(entries)) {
      if (!gitKey.test(key)) {
        context.addIssue({ code: 'custom', path: [key], message: 'is not a name of git’s configuration, such as user.name' });
      }
    }
  });

  return z
    .strictObject({
      files: z
        .array(file)
        .max(maxSetupFiles, `holds more than ${maxSetupFiles} files`)
        // No refinement, which is asked of lists with mistakes in them as well.
        .transform((list, context) => {
          if (bytesOf(list) <= maxSetupBytes) return list;
          context.addIssue({ code: 'custom', message: `hold more than ${maxSetupBytes} bytes together; copy large ones with drover cp` });
          return z.NEVER;
        })
        .optional(),
      git: z
        .strictObject({
          config: config.optional(),
          clones: z.array(clone).max(maxGitClones, `holds more than ${maxGitClones} clones`).optional(),
        })
        .optional(),
      ssh: z
        .strictObject({
          knownHosts: z.array(line).max(maxKnownHosts, `holds more than ${maxKnownHosts} lines`).optional(),
          keys: z.array(secret).max(maxKnownHosts, `holds more than ${maxKnownHosts} keys`).optional(),
          config: z.string().optional(),
        })
        .optional(),
      postInit: z
        .string()
        .refine((script) => Buffer.byteLength(script) <= maxSetupScriptBytes, `is longer than ${maxSetupScriptBytes} bytes`)
        .optional(),
      postInitFrom: local(maxSetupScriptBytes).optional(),
    })
    .refine(({ postInit, postInitFrom }) => postInit === undefined || postInitFrom === undefined, {
      path: ['postInitFrom'],
      error: 'is a second script beside postInit',
    })
    .transform(({ files, git, ssh, postInit, postInitFrom }) => ({
      ...(files !== undefined && { files }),
      ...(git !== undefined && {
        git: { config: git.config ?? {}, clones: (git.clones ?? []).map(({ ref = '', ...rest }) => ({ ...rest, ref })) },
      }),
      ...(ssh !== undefined && { ssh: { knownHosts: ssh.knownHosts ?? [], keys: ssh.keys ?? [], config: ssh.config ?? '' } }),
      postInit: postInit ?? postInitFrom ?? '',
    }));
}

function bytesOf(files: readonly { readonly source: { readonly case: string; readonly value: string } }[]): number {
  return files.reduce((sum, { source }) => sum + (source.case === 'content' ? Buffer.byteLength(source.value) : 0), 0);
}

/** A file of the caller's, which may be a pipe: `<(…)`. @throws {DroverError} invalid-argument, too-large */
function readText(flag: string, path: string, maxBytes: number): string {
  const what = flag === '' ? path : `${flag} ${path}`;
  // One more than it may hold tells that it holds too much.
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
    throw new DroverError('too-large', `${what} is larger than ${maxBytes} bytes`, { hint: 'copy what is large with drover cp' });
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(buffer.subarray(0, size));
  } catch (error) {
    throw new DroverError('invalid-argument', `${what} is not text (UTF-8)`, {
      hint: 'give it as a secret file, or copy it with drover cp',
      cause: error,
    });
  }
}
