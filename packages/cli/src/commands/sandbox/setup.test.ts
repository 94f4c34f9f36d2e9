import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, toJson } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { setupToWire } from '@drover/protocol/spec';
import { maxSetupBytes, maxSetupScriptBytes } from '@drover/spec';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readSetup } from './setup.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-setup-'));
});
afterEach(() => rm(directory, { recursive: true }));

const write = async (name: string, content: string | Uint8Array): Promise<string> => {
  const path = join(directory, name);
  await writeFile(path, content);
  return path;
};

/** The message that a setup file becomes, as JSON without its empty fields. */
async function read(text: string, secrets: readonly string[] = [], postInit?: string): Promise<unknown> {
  const file = await write('setup.yaml', text);
  const setup = readSetup({ setup: file, ...(postInit !== undefined && { postInit }) }, new Set(secrets));
  return toJson(sandbox.SetupSchema, setup === undefined ? create(sandbox.SetupSchema) : setupToWire(setup));
}

describe('I-29: --setup', () => {
  test('takes files, git, ssh and a script', async () => {
    await write('tool.toml', 'colour = true\n');
    const text = `
files:
  - path: notes/hello.txt
    content: "hello\\n"
    mode: "0640"
  - path: ~/.config/tool.toml
    contentFrom: tool.toml
  - path: /etc/token
    secret: API_TOKEN
    mode: "400"
git:
  config:
    user.name: A Robot
    core.autocrlf: false
    url.https://mirror.example/.insteadOf: https://example.org/
  clones:
    - url: https://example.org/a.git
      path: src/a
      ref: main
    - { url: ssh://git@example.org/b.git, path: src/b }
ssh:
  knownHosts:
    - example.org ssh-ed25519 AAAA
  keys: [API_TOKEN]
  config: |
    Host *
      ConnectTimeout 5
postInit: |
  #!/bin/sh
  echo ready
`;
    expect(await read(text, ['API_TOKEN'])).toEqual({
      files: [
        { path: 'notes/hello.txt', content: 'hello\n', mode: 0o640 },
        { path: '.config/tool.toml', content: 'colour = true\n' },
        { path: '/etc/token', secret: 'API_TOKEN', mode: 0o400 },
      ],
      git: {
        config: {
          'user.name': 'A Robot',
          'core.autocrlf': 'false',
          'url.https://mirror.example/.insteadOf': 'https://example.org/',
        },
        clones: [
          { url: 'https://example.org/a.git', path: 'src/a', ref: 'main' },
          { url: 'ssh://git@example.org/b.git', path: 'src/b' },
        ],
      },
      ssh: { knownHosts: ['example.org ssh-ed25519 AAAA'], keys: ['API_TOKEN'], config: 'Host *\n  ConnectTimeout 5\n' },
      postInit: '#!/bin/sh\necho ready\n',
    });
  });

  test('and --post-init take a script from a file, and from a pipe', async () => {
    const script = await write('prepare.sh', '#!/bin/sh\n');
    expect(await read('postInitFrom: prepare.sh\n')).toEqual({ postInit: '#!/bin/sh\n' });
    expect(await read('ssh: { config: "Host *" }\n', [], script)).toEqual({ ssh: { config: 'Host *' }, postInit: '#!/bin/sh\n' });
    expect(readSetup({ postInit: script }, new Set())).toMatchObject({ files: [], postInit: '#!/bin/sh\n' });
    expect(readSetup({}, new Set())).toBeUndefined();
    expect(await read('')).toEqual({});
  });

  test.each<[string, string, RegExp]>([
    ['what is no YAML', '{', /setup\.yaml:1:\d+: /],
    ['what is no list', 'files: 3\n', /:1:8: files: .*array/],
    ['a field that there is not', 'files: []\nnonsense: true\n', /:2:\d+: nonsense: /],
    ['a file without a source', 'files:\n  - path: x\n', /:2:\d+: files\.0: needs one of content, contentFrom and secret/],
    ['a file with two', 'files:\n  - { path: x, content: a, secret: MINE }\n', /files\.0: needs one of/],
    [
      'a secret that is not given',
      'files:\n  - path: a\n    secret: NOT_THERE\n',
      /:3:13: files\.0\.secret: .* the secret "NOT_THERE", which the sandbox does not have/,
    ],
    ['a key that is not given', 'ssh:\n  keys:\n    - NOT_THERE\n', /:3:7: ssh\.keys\.0: .* the secret "NOT_THERE"/],
    [
      'a path out of the home directory',
      'files:\n  - { path: ../x, content: a }\n',
      /files\.0\.path: the path "\.\.\/x" of a file holds \. or \.\./,
    ],
    [
      "somebody else's home directory",
      'files:\n  - { path: ~bob/x, content: a }\n',
      /files\.0\.path: "~bob\/x" cannot be the path of a file/,
    ],
    ['a path that is a directory', 'files:\n  - { path: x/, content: a }\n', /files\.0\.path: "x\/" names a directory/],
    ['a mode that YAML reads as another number', 'files:\n  - { path: x, content: a, mode: 0640 }\n', /mode: write the mode in quotes/],
    ['a mode with more than permissions', 'files:\n  - { path: x, content: a, mode: "4755" }\n', /mode: write the mode as chmod/],
    [
      'a local file that is not there',
      'files:\n  - path: x\n    contentFrom: none\n',
      /:3:\d+: files\.0\.contentFrom: \S+\/none cannot be read: no such file or directory/,
    ],
    ['a name that git has not', 'git:\n  config:\n    user: x\n', /:3:\d+: git\.config\.user: "user" cannot be a setting of git/],
    [
      'an option in place of a repository',
      'git:\n  clones:\n    - { url: --upload-pack=x, path: a }\n',
      /clones\.0\.url: "--upload-pack=x" is not an address/,
    ],
    [
      'an option in place of a branch',
      'git:\n  clones:\n    - { url: https://example.org/a, path: a, ref: --x }\n',
      /clones\.0\.ref: "--x" is not a branch/,
    ],
    ['two lines in place of one', 'ssh:\n  knownHosts: ["a\\nb"]\n', /knownHosts\.0: .* is not a line/],
    ['two scripts', 'postInit: a\npostInitFrom: setup.yaml\n', /postInitFrom: is a second script/],
    ['too many files', `files:\n${'  - { path: x, content: a }\n'.repeat(101)}`, /files: the setup has 101 files/],
    [
      'files that are too large together',
      `files:\n  - { path: x, content: ${'a'.repeat(maxSetupBytes)}b }\n`,
      /files: the setup has 26\d{4} bytes/,
    ],
    ['too many clones', `git:\n  clones:\n${'    - { url: a, path: a }\n'.repeat(21)}`, /clones: the setup has 21 clones/],
    ['a script that is too long', `postInit: ${'a'.repeat(maxSetupScriptBytes + 1)}\n`, /postInit: the post-init script has 65537 bytes/],
  ])('refuses %s, with the place and what to do', async (_, text, message) => {
    const reading = read(text, ['MINE']);
    await expect(reading).rejects.toThrow(message);
    const error = (await reading.catch((thrown: unknown) => thrown)) as DroverError;
    expect(error).toBeInstanceOf(DroverError);
    expect({ exit: error.exitCode, hint: error.hint }).toEqual({ exit: 2, hint: expect.stringMatching(/docs\/setup\.md/) });
  });

  test('refuses what is not text, what is too large, and what is not there', async () => {
    const binary = await write('binary', Uint8Array.of(0x7f, 0xff, 0xfe));
    await expect(read('files:\n  - { path: x, contentFrom: binary }\n')).rejects.toThrow(/contentFrom: .*binary is not text/);
    expect(() => readSetup({ postInit: binary }, new Set())).toThrow(/--post-init .*binary is not text/);
    const long = await write('long', 'a'.repeat(maxSetupScriptBytes + 1));
    expect(() => readSetup({ postInit: long }, new Set())).toThrow(/--post-init .*long is larger than 65536 bytes/);
    expect(() => readSetup({ setup: '/nonexistent' }, new Set())).toThrow(
      /--setup \/nonexistent cannot be read: no such file or directory/,
    );
    expect(() => readSetup({ setup: directory }, new Set())).toThrow(/cannot be read: it is a directory/);
    await expect(read('postInit: a\n', [], binary)).rejects.toThrow(/two scripts/);
  });
});
