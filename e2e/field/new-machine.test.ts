import { once } from 'node:events';
import { appendFile, copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:https';
import { join } from 'node:path';
import { spawn, type IPty } from '@lydell/node-pty';
import { execa } from 'execa';
import { version } from '@drover/foundation';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { addLayer, BareMachine, BareRoot, cloneSource, copyLibraries, eventually, repository, tool } from '../harness/index.ts';

const prefix = '10.230.1';
/** An address from a public range that is announced nowhere, because sandboxes reach no private address. */
const publicAddress = '11.254.230.1';
/** Programs that the README's examples run and Debian's smallest installation lacks. */
const examplePrograms = ['curl', 'procps', 'python3'];
const architecture = process.arch === 'arm64' ? 'arm64' : 'x64';
const pinnedNode = `node-linux-${architecture}@${process.version.slice(1)}`;
const apiToken = 'a-token-of-the-reader';

/** Returns the commands of the section's first two blocks. The third needs a second machine: e2e/hosts.test.ts. */
function readmeCommands(readme: string): readonly string[] {
  const section = /^## A minute with it\n([\s\S]*?)^## /m.exec(readme)?.[1] ?? '';
  const blocks = [...section.matchAll(/^```console\n([\s\S]*?)^```$/gm)].slice(0, 2).map(([, block = '']) => block);
  return blocks.flatMap((block) => [...block.matchAll(/^# (.*?)(?:\s{2,}#.*)?$/gm)].map(([, command = '']) => command));
}

/** Replacements of the README's words that a test cannot use. */
const replacements: readonly (readonly [RegExp, string])[] = [
  // The clone is of this checkout.
  [/^git clone …/, `git clone --quiet ${cloneSource}`],
  // A registry on the machine itself, which speaks plain HTTP, replaces the public registries.
  [/^\.\/drover up$/, './drover up --insecure-registry 127.0.0.1:5000'],
  [/ debian:12 /, ' 127.0.0.1:5000/debian:12 '],
  // A check of the secret replaces the reader's own program.
  [/\.\/agent\.sh$/, `sh -c 'test "$API_TOKEN" = ${apiToken}'`],
];

let root: BareRoot;
beforeAll(async () => {
  root = await BareRoot.create(examplePrograms);
});
afterAll(async () => await root[Symbol.asyncDispose]());

describe('a fresh Debian machine with its own Node.js and npm', () => {
  let machine: BareMachine;
  const cleanup = new AsyncDisposableStack();

  beforeAll(async () => {
    machine = cleanup.use(await BareMachine.start(root.path, prefix));
    await serveExample();
    await serveRegistry();
  });
  afterAll(async () => await cleanup.disposeAsync());

  /** Serves https://example.com with a certificate that the machine trusts. */
  async function serveExample(): Promise<void> {
    await tool('ip', 'address', 'add', `${publicAddress}/32`, 'dev', machine.network.cable);
    const [key, certificate] = [join(root.scratch, 'example.key'), join(root.scratch, 'example.crt')];
    const names = ['-subj', '/CN=example.com', '-addext', 'subjectAltName=DNS:example.com'];
    const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
    await tool('openssl', 'req', '-x509', ...kind, ...names, '-keyout', key, '-out', certificate);
    await appendFile(join(root.path, 'etc/ssl/certs/ca-certificates.crt'), await readFile(certificate));
    await appendFile(join(root.path, 'etc/hosts'), `${publicAddress} example.com\n`);
    const server = createServer({ key: await readFile(key), cert: await readFile(certificate) }, (_, response) => response.end());
    server.listen(443, publicAddress);
    await once(server, 'listening');
    cleanup.defer(() => void server.close());
  }

  /** Serves an image that has bash from a registry on the machine's loopback address. */
  async function serveRegistry(): Promise<void> {
    const config = join(root.scratch, 'registry.yaml');
    const storage = join(root.scratch, 'registry');
    await writeFile(config, `version: 0.1\nstorage: { filesystem: { rootdirectory: ${storage} } }\nhttp: { addr: 127.0.0.1:5000 }\n`);
    const [file, ...args] = machine.network.command('docker-registry', 'serve', config);
    const registry = execa(file, args, { reject: false, stdin: 'ignore', stdout: 'ignore', stderr: 'ignore' });
    cleanup.defer(async () => {
      registry.kill('SIGKILL');
      await registry;
    });
    const layout = join(root.scratch, 'debian');
    await tool('umoci', 'init', '--layout', layout);
    await tool('umoci', 'new', '--image', `${layout}:empty`);
    await addLayer(layout, 'empty', '12', async (rootfs) => {
      await mkdir(join(rootfs, 'bin'));
      await copyFile('/bin/bash', join(rootfs, 'bin/bash'));
      await copyLibraries(['/bin/bash'], rootfs);
    });
    const [push, ...words] = machine.network.command(
      'skopeo',
      'copy',
      '-q',
      '--dest-tls-verify=false',
      `oci:${layout}:12`,
      'docker://127.0.0.1:5000/debian:12',
    );
    await eventually('the registry accepts the image', async () => (await execa(push, words, { reject: false })).exitCode === 0);
  }

  test('runs the README line by line', async () => {
    const commands = readmeCommands(await readFile(join(repository, 'README.md'), 'utf8'));
    expect(commands.length).toBeGreaterThan(8);
    for (const command of commands) {
      const line = replacements.reduce((text, [pattern, replacement]) => text.replace(pattern, replacement), command);
      await runAsTyped(line);
    }
  }, 240_000);

  /** Types a command at a terminal as a reader does. */
  async function runAsTyped(line: string): Promise<void> {
    using terminal = new TypedCommand(machine, line);
    if (/ up\b/.test(line)) {
      await terminal.shows(/ready on https:/);
      cleanup.use(terminal.keep());
      return;
    }
    if (/ -- (?:sh|bash)$/.test(line)) {
      terminal.type('echo $((6 * 7)) in $0; exit\r');
      await terminal.shows(/^42 in /m);
    }
    if (/ logs -f /.test(line)) {
      await machine.run('./drover exec web -- curl -s 127.0.0.1:8000/', { directory: '/root/drover' });
      await terminal.shows(/GET \//);
    }
    if (/ forward /.test(line)) {
      await terminal.shows(/forwarding/);
      expect((await machine.run('curl -s 127.0.0.1:8080')).stdout).toContain('Directory listing');
    }
    if (line.endsWith(' top')) await terminal.shows(/\bweb\b/);
    // Commands that run until an interrupt.
    if (/ (?:-f|forward|top)\b/.test(line)) {
      await terminal.interrupt();
      return;
    }
    expect({ line, code: await terminal.ended(), output: terminal.output }).toMatchObject({ code: 0 });
  }
});

/**
 * Debian 12 has npm 9; the others come from the registry. npm 11 needs a newer Node.js than Debian's, such as the one that Drover is pinned
 * to. npm 9 installs it only with `--force`, because it checks its own Node.js.
 */
describe.each([
  ['9', ''],
  ['10', 'npm install --global --silent npm@10'],
  ['11', 'npm install --global --silent --force npm@11 NODE_PACKAGE'],
])('with npm %s', (major, upgrade) => {
  test('./drover starts, and npm test runs tests', async () => {
    const path = major === '9' ? root.path : await root.copy(`npm-${major}`);
    await using machine = await BareMachine.start(path, prefix);
    const run = async (line: string): Promise<string> => {
      const { code, stdout, stderr } = await machine.run(line, { timeoutMs: 240_000 });
      if (code !== 0) throw new Error(`"${line}" ended with ${code}: ${stdout}${stderr}`);
      return stdout;
    };
    if (upgrade !== '') {
      await run(upgrade.replace('NODE_PACKAGE', pinnedNode));
      await run(`rm -rf drover && git clone --quiet ${cloneSource} drover`);
    }
    expect(await run('npm --version')).toMatch(new RegExp(`^${major}\\.`));
    expect(await run('drover/drover --version')).toBe(version);
    expect(await run('cd drover && npm test -- --project unit packages/foundation/src/names.test.ts')).toMatch(
      /^[1-9]\d* passed, 0 failed$/m,
    );
  }, 300_000);
});

class TypedCommand implements Disposable {
  readonly #pty: IPty;
  readonly #line: string;
  #output = '';
  #code: number | undefined;
  #kept = false;

  constructor(machine: BareMachine, line: string) {
    this.#line = line;
    const [file, ...args] = machine.command(line, line.startsWith('git clone') ? '/root' : '/root/drover', { API_TOKEN: apiToken });
    this.#pty = spawn(file, args, { cols: 200, rows: 50, name: 'xterm', env: { PATH: process.env['PATH'] } });
    this.#pty.onData((data) => (this.#output += data));
    this.#pty.onExit(({ exitCode }) => (this.#code = exitCode));
  }

  get output(): string {
    return this.#output;
  }

  type(keys: string): void {
    this.#pty.write(keys);
  }

  async shows(text: RegExp): Promise<void> {
    const shown = (): boolean => {
      if (text.test(this.#output)) return true;
      if (this.#code === undefined) return false;
      throw new Error(`"${this.#line}" ended with ${this.#code} and did not show ${String(text)}: ${this.#output.slice(-1000)}`);
    };
    await eventually(`"${this.#line}" shows ${String(text)}`, shown, 120_000, () => this.#output);
  }

  /** Types Ctrl-C until the command ends: the first one may precede the program's hold of the terminal. */
  async interrupt(): Promise<void> {
    const interrupted = (): boolean => {
      if (this.#code === undefined) this.type('\x03');
      return this.#code !== undefined;
    };
    await eventually(`"${this.#line}" ends after Ctrl-C`, interrupted, 60_000, () => this.#output);
  }

  async ended(): Promise<number> {
    await eventually(
      `"${this.#line}" ends`,
      () => this.#code !== undefined,
      60_000,
      () => this.#output,
    );
    return this.#code ?? -1;
  }

  /** Leaves the command running. Disposing of the returned object ends it. */
  keep(): Disposable {
    this.#kept = true;
    return { [Symbol.dispose]: () => this.#pty.kill('SIGKILL') };
  }

  [Symbol.dispose](): void {
    if (this.#code === undefined && !this.#kept) this.#pty.kill('SIGKILL');
  }
}
