import { DroverError } from '@drover/foundation';
import { describe, expect, test } from 'vitest';
import { maxGitClones, maxSetupBytes, maxSetupFiles, maxSetupScriptBytes } from '../limits.ts';
import { parseSetup, type SetupInput } from './index.ts';

type Setup = SetupInput;

function check(setup: Setup, secrets: readonly string[] = ['TOKEN', 'id_ed25519']): void {
  parseSetup(setup, new Set(secrets));
}

const file = (path: string, content = 'x', mode = 0): NonNullable<Setup['files']>[number] => ({
  path,
  mode,
  source: { case: 'content', value: content },
});
const clone = (url: string, path = 'src', ref = ''): Setup => ({ git: { clones: [{ url, path, ref }] } });

describe('I-29: a setup that is', () => {
  const good: readonly (readonly [string, Setup])[] = [
    ['empty', {}],
    [
      'whole',
      {
        files: [
          file('notes/a.txt', 'hello', 0o640),
          file('/etc/b.conf', ''),
          { path: '.token', source: { case: 'secret', value: 'TOKEN' } },
        ],
        git: {
          config: { 'user.email': 'a@example.org', 'url.https://example.org/.insteadOf': 'git@example.org:', 'http.sslVerify': 'true' },
          clones: [
            { url: 'https://example.org/a/b.git', path: 'src/b', ref: 'main' },
            { url: 'ssh://git@example.org:2222/a/c', path: '/srv/c' },
            { url: 'git://example.org/d', path: 'd', ref: 'v1.2' },
          ],
        },
        ssh: { knownHosts: ['example.org ssh-ed25519 AAAA'], keys: ['id_ed25519'], config: 'Host *\n  User git\n' },
        postInit: '#!/bin/sh\nmake\n',
      },
    ],
    [
      'as long as it may be',
      { postInit: 'x'.repeat(maxSetupScriptBytes), files: [file('a', 'x'.repeat(maxSetupBytes - maxSetupScriptBytes - 1))] },
    ],
  ];
  test.each(good)('%s is taken', (_what, setup) => {
    check(setup);
  });

  const bad: readonly (readonly [string, Setup, DroverError['code'], string])[] = [
    ['a file without a path', { files: [file('')] }, 'invalid-argument', 'path'],
    ['a file that is the root', { files: [file('/')] }, 'invalid-argument', 'path'],
    ['a path that climbs', { files: [file('a/../../etc/passwd')] }, 'invalid-argument', '..'],
    ['a path with a NUL', { files: [file('a\0b')] }, 'invalid-argument', 'path'],
    ['a path with a line break', { files: [file('a\nb')] }, 'invalid-argument', 'path'],
    ['a path of init’s own', { files: [file('//.drover/run/token')] }, 'invalid-argument', '/.drover'],
    ['a path in /proc', { files: [file('/proc/1/mem')] }, 'invalid-argument', '/proc'],
    ['a part of a path that no file system takes', { files: [file(`a/${'é'.repeat(200)}`)] }, 'invalid-argument', 'too long'],
    ['two files of one path', { files: [file('a/b'), file('a//b')] }, 'invalid-argument', 'two files'],
    ['a mode with more than permissions', { files: [file('a', 'x', 0o4755)] }, 'invalid-argument', '04755'],
    ['a file of nothing', { files: [{ path: 'a' }] }, 'invalid-argument', 'neither a content nor a secret'],
    ['a secret that there is not', { files: [{ path: 'a', source: { case: 'secret', value: 'OTHER' } }] }, 'invalid-argument', 'OTHER'],
    ['too many files', { files: Array.from({ length: maxSetupFiles + 1 }, (_, i) => file(`f${i}`)) }, 'invalid-argument', '101 files'],
    ['too many bytes', { files: [file('a', 'x'.repeat(maxSetupBytes))] }, 'too-large', 'bytes'],
    ['too long a script', { postInit: 'x'.repeat(maxSetupScriptBytes + 1) }, 'too-large', 'script'],
    ['a script with a NUL', { postInit: 'a\0' }, 'invalid-argument', 'NUL'],
    ['a setting of git without a section', { git: { config: { email: 'x' } } }, 'invalid-argument', '"email"'],
    ['a setting of git with a line break', { git: { config: { 'a\n[core].b': 'x' } } }, 'invalid-argument', 'setting'],
    ['a clone over http', clone('http://example.org/a'), 'invalid-argument', 'scheme'],
    ['a clone of a file', clone('file:///etc'), 'invalid-argument', 'scheme'],
    ['a clone by a helper', clone('ext::sh -c true'), 'invalid-argument', 'address'],
    ['a clone of another form', clone('git@example.org:a/b'), 'invalid-argument', 'https://'],
    ['a clone without a host', clone('ssh:///a'), 'invalid-argument', 'host'],
    ['a host that would be an option', clone('ssh://-oProxyCommand=x/a'), 'invalid-argument', ''],
    ['a clone with a password', clone('https://me:hunter2@example.org/a'), 'invalid-argument', 'password'],
    ['a ref that would be an option', clone('https://example.org/a', 'a', '--upload-pack=x'), 'invalid-argument', 'branch'],
    ['a clone without a path', clone('https://example.org/a', ''), 'invalid-argument', 'path'],
    [
      'too many clones',
      { git: { clones: Array.from({ length: maxGitClones + 1 }, (_, i) => ({ url: 'https://example.org/a', path: `c${i}` })) } },
      'invalid-argument',
      '21 clones',
    ],
    ['a known host of two lines', { ssh: { knownHosts: ['a ssh-ed25519 A\nb ssh-ed25519 B'] } }, 'invalid-argument', 'known_hosts'],
    ['a key that is no secret', { ssh: { keys: ['id_rsa'] } }, 'invalid-argument', 'id_rsa'],
    ['a key twice', { ssh: { keys: ['TOKEN', 'TOKEN'] } }, 'invalid-argument', 'twice'],
  ];
  test.each(bad)('%s is refused, with what to do', (_what, setup, code, words) => {
    let thrown: unknown;
    try {
      check(setup);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(DroverError);
    const { code: got, message, hint } = thrown as DroverError;
    expect({ code: got, message: `${message} ${hint}` }).toEqual({ code, message: expect.stringContaining(words) as string });
    expect(hint ?? '').not.toBe('');
    expect(message).not.toContain('hunter2');
  });

  test('a key whose name is ssh’s own file is refused', () => {
    expect(() => check({ ssh: { keys: ['config'] } }, ['config'])).toThrow('own file');
  });
});
