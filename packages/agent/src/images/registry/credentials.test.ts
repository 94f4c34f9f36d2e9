import { execFileSync } from 'node:child_process';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ForeignPaths } from '../../foreign/index.ts';
import { readCredentials } from './credentials.ts';

describe('R-11: credentials come from what docker login wrote, and from its credential helpers', () => {
  let directory: string;
  let file: string;
  const foreign = new ForeignPaths();

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'drover-credentials-'));
    file = join(directory, 'config.json');
    vi.stubEnv('PATH', `${directory}:${process.env['PATH']}`);
  });
  afterEach(async () => {
    vi.unstubAllEnvs();
    await rm(directory, { recursive: true, force: true });
  });

  /** Puts docker-credential-NAME on the PATH; the script finds what it was asked in $server. */
  const helper = async (name: string, script: string): Promise<void> => {
    const program = join(directory, `docker-credential-${name}`);
    await writeFile(program, `#!/bin/sh\nserver=$(cat)\necho "$1 $server" >> ${directory}/asked\n${script}\n`);
    await chmod(program, 0o755);
  };
  const config = (value: object): Promise<void> => writeFile(file, JSON.stringify(value));
  const read = (registry: string, signal: AbortSignal = new AbortController().signal) => readCredentials(file, registry, foreign, signal);
  const answering = (username: string, secret: string): string =>
    `printf '{"ServerURL":"%s","Username":"${username}","Secret":"${secret}"}' "$server"`;
  const inFile = (host: string, password: string) => ({ [host]: { auth: Buffer.from(`kim:${password}`).toString('base64') } });

  test('the registry’s own helper goes before the one for all, and that before the file', async () => {
    await helper('own', answering('own', 'o'));
    await helper('all', answering('all', 'a'));
    await config({ credHelpers: { 'one.example': 'own' }, credsStore: 'all', auths: { ...inFile('one.example', 'f') } });
    expect(await read('one.example')).toEqual({ username: 'own', password: 'o', identityToken: undefined });
    expect(await read('two.example:5000')).toEqual({ username: 'all', password: 'a', identityToken: undefined });
    expect(await readFile(join(directory, 'asked'), 'utf8')).toBe('get one.example\nget two.example:5000\n');
  });

  test('what the helper for all does not know may stand in the file', async () => {
    await helper('all', 'echo "credentials not found in native keychain"; exit 1');
    await config({ credsStore: 'all', auths: inFile('one.example', 'f') });
    expect(await read('one.example')).toMatchObject({ username: 'kim', password: 'f' });
    expect(await read('two.example')).toBeUndefined();
  });

  test('Docker Hub is asked for by the name that docker login stores it under; a token comes back as one', async () => {
    await helper('all', answering('<token>', 'refresh-me'));
    await config({ credsStore: 'all' });
    expect(await read('docker.io')).toEqual({ username: '', password: '', identityToken: 'refresh-me' });
    expect(await readFile(join(directory, 'asked'), 'utf8')).toBe('get https://index.docker.io/v1/\n');
  });

  test('a file that does not respond holds up its own pull alone, and is named', async () => {
    // Nothing ever writes to it: a read waits as one of a file system that hangs.
    execFileSync('mkfifo', [file]);
    await expect(read('one.example')).rejects.toMatchObject({ code: 'unavailable', message: expect.stringContaining(file) as string });
  });

  test.each([
    ['says why', 'echo "the keyring is locked"; exit 1', 'the keyring is locked'],
    ['says nothing', 'exit 3', 'it ended with status 3'],
    ['answers nonsense', 'echo hunter2', 'its answer is not JSON'],
    ['leaves out the secret', 'echo "{}"', 'its answer has no Username and Secret'],
    ['answers without end', 'yes', 'its answer has more than'],
  ])('a helper that %s fails the pull in one sentence', async (_, script, reason) => {
    await helper('all', script);
    await config({ credsStore: 'all' });
    const error: unknown = await read('one.example').catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'registry-denied', hint: expect.stringContaining('docker-credential-all get') });
    expect((error as Error).message).toContain(`docker-credential-all returned no credentials for one.example: ${reason}`);
    expect((error as Error).message).not.toContain('hunter2');
  });

  test('a helper that is not there, and a name that is a path', async () => {
    await config({ credsStore: 'absent' });
    await expect(read('one.example')).rejects.toMatchObject({
      code: 'missing-component',
      message: 'there is no program docker-credential-absent on this host',
    });
    await config({ credsStore: '../../bin/sh' });
    await expect(read('one.example')).rejects.toMatchObject({ code: 'invalid-config' });
  });

  test('a helper that hangs is killed with all that it started when the pull is given up', async () => {
    await helper('all', 'sleep 600 & echo $! > "$(dirname "$0")/pid"; wait');
    await config({ credsStore: 'all' });
    const pull = new AbortController();
    const reading = read('one.example', pull.signal);
    const pid = await vi.waitFor(async () => {
      const found = Number(await readFile(join(directory, 'pid'), 'utf8'));
      expect(found).toBeGreaterThan(0);
      return found;
    }, 10_000);
    pull.abort(new Error('given up'));
    await expect(reading).rejects.toThrow('given up');
    await vi.waitFor(() => expect(() => process.kill(pid, 0)).toThrow('ESRCH'), 10_000);
  });
});
