import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { initBundlePath } from '../bundle.ts';
import { createTestAuthority, startInit, TestSession, type TestAuthority, type TestInit, type TestStepEnd } from '../testing/index.ts';

/** The user of the steps, without an account. */
const uid = 4321;

let test: TestAuthority;
let box: TestInit;
let session: TestSession;
let home: string;

beforeAll(async () => {
  test = await createTestAuthority();
  box = await startInit(test, { main: { user: `${uid}:${uid}`, workdir: '/' } });
  session = new TestSession(await box.client());
});
afterAll(async () => {
  session.cut();
  await box.close();
  await test.close();
});
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'drover-home-'));
  await chown(home, uid, uid);
});
afterEach(async () => await rm(home, { recursive: true, force: true }));

async function builtIn(name: string, stdin: Uint8Array, env: readonly string[] = []): Promise<TestStepEnd> {
  return await session.step({ name, argv: ['drover-step', name], stdin, env: [`HOME=${home}`, ...env] });
}
const config = async (...files: readonly MessageInitShape<typeof init.StepFileSchema>[]): Promise<TestStepEnd> =>
  await builtIn('config', toBinary(init.ConfigStepSchema, create(init.ConfigStepSchema, { files: [...files] })));
const git = async (step: MessageInitShape<typeof init.GitStepSchema>, env?: readonly string[]): Promise<TestStepEnd> =>
  await builtIn('git', toBinary(init.GitStepSchema, create(init.GitStepSchema, step)), env);
const cloneAll = async (...clones: readonly MessageInitShape<typeof init.GitCloneSchema>[]): Promise<TestStepEnd> =>
  await builtIn('clone', toBinary(init.CloneStepSchema, create(init.CloneStepSchema, { clones: [...clones] })));
const ssh = async (step: MessageInitShape<typeof init.SshStepSchema>): Promise<TestStepEnd> =>
  await builtIn('ssh', toBinary(init.SshStepSchema, create(init.SshStepSchema, step)));
const postInit = async (script: string, env?: readonly string[]): Promise<TestStepEnd> =>
  await builtIn('post-init', toBinary(init.PostInitStepSchema, create(init.PostInitStepSchema, { script })), env);

const done = { code: 0, signal: '', timedOut: false, stderr: '' };
const bytes = (text: string): Uint8Array => Buffer.from(text);
const mode = (path: string): string => (statSync(join(home, path)).mode & 0o7777).toString(8);
const text = (path: string): string => readFileSync(join(home, path), 'utf8');

describe('I-29: step config', () => {
  it('makes files with their content and mode, and their directories, as the user', async () => {
    const end = await config(
      { path: 'a/b/settings.json', content: bytes('{}') },
      { path: '~/run.sh', content: bytes('#!/bin/sh\n'), mode: 0o755 },
      { path: join(home, 'absolute'), content: bytes(''), mode: 0o600 },
    );
    expect(end).toMatchObject(done);
    expect([text('a/b/settings.json'), mode('a/b/settings.json'), mode('a/b')]).toEqual(['{}', '644', '755']);
    expect([text('run.sh'), mode('run.sh'), mode('absolute')]).toEqual(['#!/bin/sh\n', '755', '600']);
    expect(statSync(join(home, 'a/b/settings.json')).uid).toBe(uid);
  });

  it('I-32: changes only files that differ, and leaves no temporary file', async () => {
    const files = ['same', 'text', 'mode'].map((path) => ({ path, content: bytes('1'), mode: 0o600 }));
    await config(...files);
    const before = (path: string): bigint => statSync(join(home, path), { bigint: true }).ino;
    const inode = before('same');
    writeFileSync(join(home, 'text'), '2');
    chmodSync(join(home, 'mode'), 0o666);
    // What a step that was killed has left.
    writeFileSync(join(home, '.text.drover-new'), 'half');
    expect(await config(...files)).toMatchObject(done);
    expect([before('same'), text('text'), mode('mode')]).toEqual([inode, '1', '600']);
    expect(readdirSync(home).sort()).toEqual(['mode', 'same', 'text']);
  });

  it('puts a file in the place of a link rather than through it', async () => {
    const elsewhere = join(home, 'elsewhere');
    writeFileSync(elsewhere, 'kept');
    symlinkSync(elsewhere, join(home, 'link'));
    expect(await config({ path: 'link', content: bytes('new') })).toMatchObject(done);
    expect([text('elsewhere'), text('link'), lstatSync(join(home, 'link')).isSymbolicLink()]).toEqual(['kept', 'new', false]);
  });

  it.each<[string, string, RegExp]>([
    [
      'the user may not write',
      '/root/forbidden',
      /^drover-step config: \/root\/forbidden cannot be written by the sandbox's user 4321: permission denied; choose .*\n$/,
    ],
    ['is a directory', 'taken', /^drover-step config: .*\/taken cannot be made: something else is in its place; .*\n$/],
    ['is none', '', /^drover-step config: "" cannot be a path\n$/],
  ])('says in one line when a path %s', async (_, path, message) => {
    mkdirSync(join(home, 'taken'));
    const end = await config({ path, content: bytes('x') });
    expect([end.code, end.stdout]).toEqual([1, '']);
    expect(end.stderr).toMatch(message);
  });
});

describe('I-29: step ssh', () => {
  const step = {
    knownHosts: ['example.org ssh-ed25519 AAAA', 'example.com ssh-ed25519 BBBB'],
    keys: [
      { path: 'id_ed25519', content: bytes('KEY') },
      { path: '.ssh/other', content: bytes('OTHER\n') },
    ],
    config: 'Host *\n  User git',
  };

  it('makes keys, known hosts and the configuration, private', async () => {
    expect(await ssh(step)).toMatchObject(done);
    expect(text('.ssh/id_ed25519')).toBe('KEY\n');
    expect(text('.ssh/other')).toBe('OTHER\n');
    expect(text('.ssh/config')).toBe('Host *\n  User git\n');
    expect(text('.ssh/known_hosts')).toBe('example.org ssh-ed25519 AAAA\nexample.com ssh-ed25519 BBBB\n');
    expect(['.ssh', '.ssh/id_ed25519', '.ssh/config', '.ssh/known_hosts'].map(mode)).toEqual(['700', '600', '600', '600']);
  });

  it('I-32: keeps the known hosts that there are, and repeats none', async () => {
    mkdirSync(join(home, '.ssh'), { mode: 0o755 });
    writeFileSync(join(home, '.ssh/known_hosts'), 'mine ssh-rsa CCCC\nexample.org ssh-ed25519 AAAA');
    execFileSync('chown', ['-R', `${uid}`, join(home, '.ssh')]);
    for (let i = 0; i < 2; i++) expect(await ssh(step)).toMatchObject(done);
    expect(text('.ssh/known_hosts')).toBe('mine ssh-rsa CCCC\nexample.org ssh-ed25519 AAAA\nexample.com ssh-ed25519 BBBB\n');
    expect(mode('.ssh')).toBe('700');
  });
});

describe('I-29: step git', () => {
  let origin: string;
  beforeAll(async () => {
    origin = await mkdtemp(join(tmpdir(), 'drover-origin-'));
    const run = (...args: readonly string[]): void =>
      void execFileSync('git', ['-C', origin, '-c', 'user.name=t', '-c', 'user.email=t@t', ...args]);
    run('init', '--quiet', '--initial-branch=main');
    writeFileSync(join(origin, 'file'), 'one');
    run('add', '.');
    run('commit', '--quiet', '-m', 'one');
    run('tag', 'v1');
    run('branch', 'side');
    run('update-ref', 'refs/pull/7/head', 'HEAD');
    writeFileSync(join(origin, 'file'), 'two');
    run('commit', '--quiet', '-am', 'two');
    // Its files are root's, and git asks whose a repository is before it serves it.
    execFileSync('chown', ['-R', `${uid}:${uid}`, origin]);
    await chmod(origin, 0o755);
  });
  afterAll(async () => await rm(origin, { recursive: true, force: true }));

  it("I-32: sets the user's configuration, once", async () => {
    const step = { config: { 'user.name': 'A Person', 'url.https://example.org/.insteadOf': 'eg:' } };
    expect(await git(step)).toMatchObject(done);
    const inode = statSync(join(home, '.gitconfig')).ino;
    expect(await git(step)).toMatchObject(done);
    expect(statSync(join(home, '.gitconfig')).ino).toBe(inode);
    const list = execFileSync('git', ['config', '--file', join(home, '.gitconfig'), '--list'], { encoding: 'utf8' });
    expect(list.split('\n').sort()).toEqual(['', 'url.https://example.org/.insteadof=eg:', 'user.name=A Person']);
  });

  it('replaces every value that a key has', async () => {
    writeFileSync(join(home, '.gitconfig'), '[user]\n\tname = a\n\tname = b\n');
    execFileSync('chown', [`${uid}`, join(home, '.gitconfig')]);
    expect(await git({ config: { 'user.name': 'c' } })).toMatchObject(done);
    expect(text('.gitconfig')).toBe('[user]\n\tname = c\n');
  });

  it.each([
    ['', 'two'],
    ['v1', 'one'],
    ['side', 'one'],
    ['refs/pull/7/head', 'one'],
  ])('clones with ref %j checked out', async (ref, content) => {
    expect(await cloneAll({ url: origin, path: 'work/repo', ref })).toMatchObject(done);
    expect(text('work/repo/file')).toBe(content);
    expect(readdirSync(join(home, 'work'))).toEqual(['repo']);
  });

  it('I-32: leaves a repository as it is, whatever was done in it and to its remote', async () => {
    const clone = { url: origin, path: 'repo', ref: 'side' };
    await cloneAll(clone);
    writeFileSync(join(home, 'repo/file'), 'worked on');
    execFileSync('git', ['config', '--file', join(home, 'repo/.git/config'), 'remote.origin.url', 'https://elsewhere.example/x']);
    expect(await cloneAll(clone)).toMatchObject(done);
    expect(text('repo/file')).toBe('worked on');
    expect(text('repo/.git/config')).toContain('https://elsewhere.example/x');
  });

  it('begins again after a clone that was interrupted', async () => {
    await mkdir(join(home, '.repo.drover-clone/.git'), { recursive: true });
    execFileSync('chown', ['-R', `${uid}`, home]);
    expect(await cloneAll({ url: origin, path: 'repo' })).toMatchObject(done);
    expect(readdirSync(home)).toEqual(['repo']);
  });

  it.each<[string, MessageInitShape<typeof init.GitCloneSchema>, RegExp]>([
    ['has something else in its place', { path: 'taken' }, /taken holds files already, and is not a git repository; choose another path/],
    ['has no such ref', { path: 'repo', ref: 'nowhere' }, /has no nowhere: .*; name a branch/],
    ['is not there', { url: '/no/such/repository', path: 'repo' }, /\/no\/such\/repository cannot be cloned: .*; check the address/],
    ['is asked for an option', { path: 'repo', ref: '--exec=x' }, /"--exec=x" cannot be a git ref/],
  ])('says in one line when a clone %s, and leaves nothing', async (_, clone, message) => {
    mkdirSync(join(home, 'taken'));
    writeFileSync(join(home, 'taken/file'), '');
    const end = await cloneAll({ url: origin, ...clone });
    expect(end.code).toBe(1);
    expect(end.stderr).toMatch(message);
    expect(end.stderr).toMatch(/^drover-step clone: [^\n]*\n$/);
    expect(readdirSync(home)).toEqual(['taken']);
  });

  it('shows no password of an address', async () => {
    const end = await cloneAll({ url: 'http://user:hunter2@127.0.0.1:1/repo', path: 'repo' });
    expect(end.stderr).toContain('http://127.0.0.1:1/repo cannot be cloned');
    expect(end.stderr).not.toContain('hunter2');
  });

  it('in an image without git fails with that reason and the status of a missing command', async () => {
    const end = await git({ config: { 'user.name': 'x' } }, ['PATH=/nowhere']);
    expect(end.code).toBe(127);
    expect(end.stderr).toBe('drover-step git: the image has no git; use an image with git in it, or leave git out of the setup\n');
  });
});

describe('I-29: step post-init', () => {
  it("runs the script with the interpreter of its first line, its output and status the step's", async () => {
    const end = await postInit('#!/usr/bin/env -S sh -eu\necho "$MINE $(id -u) $PWD"; echo problem >&2; exit 7', ['MINE=2']);
    expect(end).toMatchObject({ code: 7, stdout: `2 ${uid} /\n`, stderr: 'problem\n' });
  });

  it('runs it with sh when it names none, without its file left', async () => {
    const end = await postInit('echo "$0"; cat "$0" | wc -c');
    const path = end.stdout.split('\n')[0] ?? '';
    expect(end.stdout).toBe(`${path}\n27\n`);
    expect([existsSync(path), existsSync(join(path, '..'))]).toEqual([false, false]);
  });

  it('reports a signal in the numbers of shells', async () => {
    expect(await postInit('kill -USR1 $$')).toMatchObject({ code: 138 });
  });

  it('in an image without the interpreter fails with that reason', async () => {
    const end = await postInit('#!/no/such/interpreter\n');
    expect(end.code).toBe(127);
    expect(end.stderr).toMatch(/^drover-step post-init: the image has no \/no\/such\/interpreter to run the script with; name .*\n$/);
  });

  it('has the environment as the user chose it, which does not touch the step itself', async () => {
    const hostile = ['NODE_OPTIONS=--require=/nowhere.js', 'LD_PRELOAD=/nowhere.so', 'LD_LIBRARY_PATH=/nowhere'];
    const end = await postInit('echo "$NODE_OPTIONS $LD_LIBRARY_PATH"', hostile);
    expect(end).toMatchObject({ code: 0, stdout: '--require=/nowhere.js /nowhere\n' });
  });
});

it('a step that this init does not have fails', async () => {
  expect(await builtIn('nothing', bytes(''))).toMatchObject({ code: 1, stderr: expect.stringContaining('this init has no such step') });
});

it('I-38: the built-in steps need nothing of the image', async () => {
  const root = await mkdtemp(join(tmpdir(), 'drover-scratch-'));
  const runDirectory = join(root, 'run');
  mkdirSync(runDirectory);
  // An empty root file system with Node, its loader and libraries, and init; each at a place that no image has.
  const script = `set -e; root=$1; bundle=$2; shift 2
    mount --make-rprivate /
    for path in "$1" "$bundle" /lib64/ld-linux-x86-64.so.2; do mkdir -p "$root$(dirname "$path")"; touch "$root$path"; mount --bind "$path" "$root$path"; done
    mkdir -p "$root/.drover/lib" "$root/proc" "$root$root/run"
    mount --bind /lib/x86_64-linux-gnu "$root/.drover/lib"
    mount --bind "$root/run" "$root$root/run"
    mount -t proc proc "$root/proc"
    exec chroot "$root" /lib64/ld-linux-x86-64.so.2 --library-path /.drover/lib "$@"`;
  const launcher = ['unshare', '--mount', '--pid', '--fork', '--kill-child', 'sh', '-c', script, 'sh', root, initBundlePath()];
  const scratch = await startInit(test, { launcher, runDirectory, main: { user: `${uid}` } });
  try {
    const steps = new TestSession(await scratch.client());
    await chown(root, uid, uid);
    const stdin = toBinary(
      init.ConfigStepSchema,
      create(init.ConfigStepSchema, { files: [{ path: 'made/in/scratch', content: bytes('yes') }] }),
    );
    expect(await steps.step({ name: 'config', argv: ['drover-step', 'config'], stdin })).toMatchObject(done);
    expect(readFileSync(join(root, 'made/in/scratch'), 'utf8')).toBe('yes');
    const script = toBinary(init.PostInitStepSchema, create(init.PostInitStepSchema, { script: 'true' }));
    const postInitIn = async (directory: string): Promise<TestStepEnd> =>
      await steps.step({ name: 'post-init', argv: ['drover-step', 'post-init'], stdin: script, env: [`TMPDIR=${directory}`] });
    expect(await postInitIn('/tmp/none')).toMatchObject({ code: 1, stderr: expect.stringContaining('has no directory /tmp/none for the') });
    expect(await postInitIn('/')).toMatchObject({ code: 127, stderr: expect.stringContaining('the image has no sh to run the script') });
    steps.cut();
  } finally {
    await scratch.close();
    await rm(root, { recursive: true, force: true });
  }
});
