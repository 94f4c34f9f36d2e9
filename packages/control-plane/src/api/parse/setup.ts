import { clip, DroverError } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import { maxGitClones, maxGitConfig, maxKnownHosts, maxSetupBytes, maxSetupFiles, maxSetupScriptBytes } from '@drover/spec';

function invalid(message: string, hint: string): DroverError {
  return new DroverError('invalid-argument', message, { hint });
}

const quote = (text: string): string => JSON.stringify(clip(text));

/** What the init plan is to do (I-29), as far as it can be told without the sandbox. @throws {DroverError} invalid-argument, too-large */
export function checkSetup(spec: sandbox.SandboxSpec): void {
  const { setup } = spec;
  if (setup === undefined) return;
  const secrets = new Set(spec.secrets.map(({ name }) => name));
  checkFiles(setup.files, secrets);
  if (setup.git !== undefined) checkGit(setup.git);
  if (setup.ssh !== undefined) checkSsh(setup.ssh, secrets);
  const scriptBytes = Buffer.byteLength(setup.postInit);
  if (scriptBytes > maxSetupScriptBytes) {
    throw new DroverError('too-large', `the post-init script has ${scriptBytes} bytes`, { hint: `use at most ${maxSetupScriptBytes}` });
  }
  if (setup.postInit.includes('\0')) throw invalid('the post-init script holds a NUL', 'give a script of text');
  const bytes = scriptBytes + bytesOf(setup);
  if (bytes > maxSetupBytes) {
    throw new DroverError('too-large', `the setup has ${bytes} bytes`, {
      hint: `use at most ${maxSetupBytes}; \`drover cp\` brings in larger files`,
    });
  }
}

/** Everything that a person wrote, but the script. */
function bytesOf({ files, git, ssh }: sandbox.Setup): number {
  const texts = [
    ...files.flatMap(({ path, source }) => [path, source.value ?? '']),
    ...Object.entries(git?.config ?? {}).flat(),
    ...(git?.clones ?? []).flatMap(({ url, path, ref }) => [url, path, ref]),
    ...(ssh?.knownHosts ?? []),
    ...(ssh?.keys ?? []),
    ssh?.config ?? '',
  ];
  return texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
}

function checkFiles(files: readonly sandbox.SetupFile[], secrets: ReadonlySet<string>): void {
  if (files.length > maxSetupFiles) throw invalid(`the setup has ${files.length} files`, `use at most ${maxSetupFiles}`);
  for (const { path, source, mode } of files) {
    checkPath('file', path);
    if (source.case === undefined) throw invalid(`nothing says what is in ${quote(path)}`, 'give its content, or name a secret');
    if (source.case === 'secret') checkSecret(`the file ${quote(path)}`, source.value, secrets);
    if (mode > 0o777) throw invalid(`${quote(path)} cannot have the mode 0${mode.toString(8)}`, 'use permission bits alone, such as 0644');
  }
  checkDistinct('file', files);
}

function checkGit({ config, clones }: sandbox.GitSetup): void {
  const entries = Object.entries(config);
  if (entries.length > maxGitConfig) throw invalid(`the setup has ${entries.length} settings for git`, `use at most ${maxGitConfig}`);
  for (const [key, value] of entries) {
    if (!gitKey.test(key)) throw invalid(`${quote(key)} cannot be a setting of git`, 'write section.name, such as user.email');
    if (value.includes('\0')) throw invalid(`the value of ${quote(key)} holds a NUL`, 'give text');
  }
  if (clones.length > maxGitClones) throw invalid(`the setup has ${clones.length} clones`, `use at most ${maxGitClones}`);
  for (const { url, path, ref } of clones) {
    checkUrl(url);
    checkPath('clone', path);
    if (ref.startsWith('-') || ref.length > 255 || unprintable.test(ref) || ref.includes(' ')) {
      throw invalid(`${quote(ref)} is not a branch, a tag or a commit`, 'give a name as git has it, such as main or v1.2');
    }
  }
  checkDistinct('clone', clones);
}

function checkSsh({ knownHosts, keys, config }: sandbox.SshSetup, secrets: ReadonlySet<string>): void {
  if (knownHosts.length > maxKnownHosts) throw invalid(`the setup has ${knownHosts.length} known hosts`, `use at most ${maxKnownHosts}`);
  for (const line of knownHosts) {
    if (line.trim() === '' || unprintable.test(line.replaceAll('\t', ' '))) {
      throw invalid(`${quote(line)} is not a line of known_hosts`, 'give one line each, as ssh-keyscan prints it');
    }
  }
  if (new Set(keys).size < keys.length) throw invalid('a key is named twice for ssh', 'name each secret once');
  for (const key of keys) {
    checkSecret('ssh', key, secrets);
    // It becomes a file of this name in ~/.ssh.
    if (reservedKeys.has(key)) throw invalid(`the key ${quote(key)} would be ssh's own file of that name`, 'name the secret otherwise');
  }
  if (config.includes('\0')) throw invalid('the configuration of ssh holds a NUL', 'give text');
}

/** git-config(1), Syntax: a section, perhaps a subsection of almost anything, and a name. */
const gitKey = /^[A-Za-z0-9-]+(?:\.[^\0\n]{1,255})?\.[A-Za-z][A-Za-z0-9-]{0,127}$/;
// oxlint-disable-next-line no-control-regex -- control characters are what it looks for
const unprintable = /[\u0000-\u001F\u007F]/;
const reservedKeys = new Set(['known_hosts', 'config', 'authorized_keys']);
const urlSchemes = new Set(['https:', 'ssh:', 'git:']);

/** Absolute, or below the home directory. @throws {DroverError} invalid-argument */
function checkPath(what: string, path: string): void {
  const parts = path.split('/').filter((part) => part !== '');
  if (parts.length === 0 || path.length > 4096 || unprintable.test(path)) {
    throw invalid(`${quote(path)} cannot be the path of a ${what}`, 'write an absolute path, or one below the home directory');
  }
  if (parts.includes('..') || parts.includes('.')) throw invalid(`the path ${quote(path)} of a ${what} holds . or ..`, 'write it without');
  if (parts.some((part) => Buffer.byteLength(part) > 255)) {
    throw invalid(`the path ${quote(path)} of a ${what} has a part that is too long`, 'use at most 255 bytes between two slashes');
  }
  if (path.startsWith('/') && inits.has(parts[0] ?? '')) {
    throw invalid(`nothing can be written to ${quote(path)}`, 'choose a path outside /proc, /sys, /dev and /.drover');
  }
}

const inits = new Set(['proc', 'sys', 'dev', '.drover']);

/** @throws {DroverError} invalid-argument */
function checkDistinct(what: string, entries: readonly { readonly path: string }[]): void {
  const seen = new Set<string>();
  for (const { path } of entries) {
    const normal = path.replaceAll(/\/+/g, '/').replace(/\/$/, '');
    if (seen.has(normal)) throw invalid(`two ${what}s have the path ${quote(path)}`, 'give each its own');
    seen.add(normal);
  }
}

/** @throws {DroverError} invalid-argument */
function checkUrl(url: string): void {
  const hint = 'write https://…, ssh://… or git://… with a host';
  // What a URL holds of a password is not told.
  const shown = quote(url.replace(/\/\/[^/@]*@/, '//'));
  const parsed = url.length <= 2048 && !unprintable.test(url) && !url.includes(' ') ? URL.parse(url) : null;
  if (parsed === null) throw invalid(`${shown} is not an address that git can clone`, hint);
  if (!urlSchemes.has(parsed.protocol)) throw invalid(`${shown} cannot be cloned: its scheme is not allowed`, hint);
  // A host that begins with a hyphen would be an option to ssh (CVE-2017-1000117).
  if (parsed.hostname === '' || parsed.hostname.startsWith('-')) throw invalid(`${shown} names no host`, hint);
  if (parsed.password !== '') {
    throw invalid(`${shown} holds a password, which everybody could read`, 'give it as a secret, in a file for git or as a key for ssh');
  }
}

/** @throws {DroverError} invalid-argument */
function checkSecret(what: string, name: string, secrets: ReadonlySet<string>): void {
  if (secrets.has(name)) return;
  const known = secrets.size === 0 ? 'it has none' : `it has ${[...secrets].slice(0, 10).join(', ')}`;
  throw invalid(`${what} is to be the secret ${quote(name)}, which the sandbox does not have`, `give it with --secret (${known})`);
}
