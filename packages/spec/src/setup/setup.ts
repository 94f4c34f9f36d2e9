import { DroverError } from '@drover/foundation';
import { invalid, quote } from '../invalid.ts';
import { maxGitClones, maxGitConfig, maxKnownHosts, maxSecrets, maxSetupBytes, maxSetupFiles, maxSetupScriptBytes } from '../limits.ts';
import { checkGitSetting, parseCloneUrl, parseGitRef, type GitClone } from './git.ts';
import { parseSetupPath } from '../paths.ts';

/** What the init plan does before the sandbox's command starts (I-29). */
export interface Setup {
  readonly files: readonly SetupFile[];
  readonly git: { readonly config: Readonly<Record<string, string>>; readonly clones: readonly GitClone[] };
  readonly ssh: { readonly knownHosts: readonly string[]; readonly keys: readonly string[]; readonly config: string };
  /** A script; empty: none. */
  readonly postInit: string;
}

export interface SetupFile {
  readonly path: string;
  readonly source: SetupSource;
  /** Permission bits; 0: the default for the source. */
  readonly mode: number;
}

/** A text, or the name of one of the sandbox's secrets. */
export type SetupSource = { readonly case: 'content'; readonly value: string } | { readonly case: 'secret'; readonly value: string };

/** A setup as it is written in a file or on the wire. */
export interface SetupInput {
  readonly files?: readonly {
    readonly path: string;
    readonly source?: SetupSource | { readonly case: undefined };
    readonly mode?: number;
  }[];
  readonly git?:
    | {
        readonly config?: Readonly<Record<string, string>>;
        readonly clones?: readonly { readonly url: string; readonly path: string; readonly ref?: string }[];
      }
    | undefined;
  readonly ssh?: { readonly knownHosts?: readonly string[]; readonly keys?: readonly string[]; readonly config?: string } | undefined;
  readonly postInit?: string;
}

/** Takes a mistake and the field that it is in. */
export type ReportMistake = (error: DroverError, path: readonly (string | number)[]) => void;

const reservedKeys: ReadonlySet<string> = new Set(['known_hosts', 'config', 'authorized_keys']);

/**
 * @param secrets names of the sandbox's secrets: a setup names no others
 * @param report called with each mistake; the result counts only if there is none. Default: throws the first
 * @throws {DroverError} invalid-argument, too-large
 */
export function parseSetup(input: SetupInput, secrets: ReadonlySet<string>, report: ReportMistake = throwMistake): Setup {
  const parsed = new SetupParser(secrets, report).parse(input);
  const bytes = bytesOf(parsed);
  if (bytes > maxSetupBytes) {
    report(
      new DroverError('too-large', `the setup has ${bytes} bytes`, {
        hint: `use at most ${maxSetupBytes}; \`drover cp\` brings in larger files`,
      }),
      ['files'],
    );
  }
  return parsed;
}

function throwMistake(error: DroverError): never {
  throw error;
}

class SetupParser {
  readonly #secrets: ReadonlySet<string>;
  readonly #report: ReportMistake;

  constructor(secrets: ReadonlySet<string>, report: ReportMistake) {
    this.#secrets = secrets;
    this.#report = report;
  }

  parse({ files = [], git = {}, ssh = {}, postInit = '' }: SetupInput): Setup {
    const { config = {}, clones = [] } = git;
    const { knownHosts = [], keys = [], config: sshConfig = '' } = ssh;
    this.#atMost(files.length, 'files', maxSetupFiles, ['files']);
    this.#atMost(Object.keys(config).length, 'settings for git', maxGitConfig, ['git', 'config']);
    this.#atMost(clones.length, 'clones', maxGitClones, ['git', 'clones']);
    this.#atMost(knownHosts.length, 'known hosts', maxKnownHosts, ['ssh', 'knownHosts']);
    this.#atMost(keys.length, 'keys for ssh', maxSecrets, ['ssh', 'keys']);
    return {
      files: this.#distinct(
        'file',
        ['files'],
        files.map((file, at) => this.#file(file, ['files', at])),
      ),
      git: { config: this.#settings(config), clones: this.#clones(clones) },
      ssh: {
        knownHosts: this.#knownHosts(knownHosts),
        keys: this.#keys(keys),
        config: this.#text('configuration of ssh', sshConfig, ['ssh', 'config']),
      },
      postInit: this.#script(postInit),
    };
  }

  #file({ path, source, mode = 0 }: NonNullable<SetupInput['files']>[number], at: readonly (string | number)[]): SetupFile {
    return {
      path: this.#at([...at, 'path'], path, () => {
        if (path.endsWith('/')) throw invalid(`${quote(path)} names a directory`, 'end the path with the name of a file');
        return parseSetupPath('file', path);
      }),
      source: this.#at<SetupSource>([...at, source?.case ?? 'path'], { case: 'content', value: '' }, () => {
        if (source?.case === undefined)
          throw invalid(`the file ${quote(path)} has neither a content nor a secret`, 'write its content, or name a secret');
        if (source.case === 'secret') this.#secret(`the file ${quote(path)}`, source.value);
        return source;
      }),
      mode: this.#at([...at, 'mode'], mode, () => {
        if (mode <= 0o777) return mode;
        throw invalid(`${quote(path)} cannot have the mode 0${mode.toString(8)}`, 'use permission bits alone, such as 0644');
      }),
    };
  }

  #settings(config: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
    for (const [key, value] of Object.entries(config)) this.#at(['git', 'config', key], undefined, () => checkGitSetting(key, value));
    return config;
  }

  #clones(clones: NonNullable<NonNullable<SetupInput['git']>['clones']>): readonly GitClone[] {
    const at = ['git', 'clones'];
    const parsed = clones.map(({ url, path, ref = '' }, index) => ({
      url: this.#at([...at, index, 'url'], url, () => parseCloneUrl(url)),
      path: this.#at([...at, index, 'path'], path, () => parseSetupPath('clone', path)),
      ref: this.#at([...at, index, 'ref'], ref, () => parseGitRef(ref)),
    }));
    return this.#distinct('clone', at, parsed);
  }

  #knownHosts(lines: readonly string[]): readonly string[] {
    for (const [index, line] of lines.entries()) {
      this.#at(['ssh', 'knownHosts', index], undefined, () => {
        if (line.trim() !== '' && !/\p{Cc}/u.test(line.replaceAll('\t', ' '))) return;
        throw invalid(`${quote(line)} is not a line of known_hosts`, 'write one line each, as ssh-keyscan prints it');
      });
    }
    return lines;
  }

  /** Names of secrets, which become files in ~/.ssh. */
  #keys(keys: readonly string[]): readonly string[] {
    for (const [index, key] of keys.entries()) {
      this.#at(['ssh', 'keys', index], undefined, () => {
        this.#secret('ssh', key);
        if (keys.indexOf(key) < index) throw invalid('a key is named twice for ssh', 'name each secret once');
        if (reservedKeys.has(key)) throw invalid(`the key ${quote(key)} would be ssh's own file of that name`, 'rename the secret');
      });
    }
    return keys;
  }

  #script(script: string): string {
    this.#at(['postInit'], undefined, () => {
      const bytes = Buffer.byteLength(script);
      if (bytes <= maxSetupScriptBytes) return;
      throw new DroverError('too-large', `the post-init script has ${bytes} bytes`, { hint: `use at most ${maxSetupScriptBytes}` });
    });
    return this.#text('post-init script', script, ['postInit']);
  }

  #text(what: string, text: string, at: readonly (string | number)[]): string {
    if (text.includes('\0')) this.#report(invalid(`the ${what} holds a NUL`, 'use text'), at);
    return text;
  }

  #secret(what: string, name: string): void {
    if (this.#secrets.has(name)) return;
    const known = this.#secrets.size === 0 ? 'it has none' : `it has ${[...this.#secrets].slice(0, 10).join(', ')}`;
    throw invalid(`${what} is to be the secret ${quote(name)}, which the sandbox does not have`, `pass it with --secret (${known})`);
  }

  #distinct<T extends { readonly path: string }>(what: string, at: readonly string[], entries: readonly T[]): readonly T[] {
    for (const [index, { path }] of entries.entries()) {
      if (entries.findIndex((other) => other.path === path) === index) continue;
      this.#report(invalid(`two ${what}s have the path ${quote(path)}`, 'use different paths'), [...at, index, 'path']);
    }
    return entries;
  }

  #atMost(count: number, what: string, max: number, at: readonly string[]): void {
    if (count > max) this.#report(invalid(`the setup has ${count} ${what}`, `use at most ${max}`), at);
  }

  /** The result of `parse`; `fallback` after a mistake that was only reported. */
  #at<T>(at: readonly (string | number)[], fallback: T, parse: () => T): T {
    try {
      return parse();
    } catch (error) {
      this.#report(DroverError.from(error), at);
      return fallback;
    }
  }
}

/** Everything that a person wrote. */
function bytesOf({ files, git, ssh, postInit }: Setup): number {
  const texts = [
    ...files.flatMap(({ path, source }) => [path, source.value]),
    ...Object.entries(git.config).flat(),
    ...git.clones.flatMap(({ url, path, ref }) => [url, path, ref]),
    ...ssh.knownHosts,
    ...ssh.keys,
    ssh.config,
    postInit,
  ];
  return texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
}
