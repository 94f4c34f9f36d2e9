import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm, symlink, writeFile, copyFile } from 'node:fs/promises';
import { createServer, request, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTcpServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

/** Real peers for the tests of the image store: Debian's registry server, skopeo, umoci, busybox. */

const run = promisify(execFile);

/** @throws {Error} saying what to install */
export function requireTools(...tools: readonly (readonly [path: string, debianPackage: string])[]): void {
  for (const [path, debianPackage] of tools) {
    if (!existsSync(path)) throw new Error(`${path} is missing: apt-get install ${debianPackage}`);
  }
}

export const imageTools = [
  ['/usr/bin/docker-registry', 'docker-registry'],
  ['/usr/bin/skopeo', 'skopeo'],
  ['/usr/bin/umoci', 'umoci'],
  ['/bin/busybox', 'busybox-static'],
] as const;

export async function command(program: string, ...args: readonly string[]): Promise<string> {
  const { stdout } = await run(program, args, { maxBuffer: 64 * 1024 * 1024 });
  return stdout;
}

export async function temporaryDirectory(): Promise<string> {
  return mkdtemp(join(tmpdir(), 'drover-images-'));
}

/** An OCI layout `layout:busybox` of one or two layers, made by umoci. */
export async function makeLayout(directory: string): Promise<string> {
  const layout = join(directory, 'layout');
  const bundle = join(directory, 'bundle');
  const image = `${layout}:busybox`;
  await command('umoci', 'init', '--layout', layout);
  await command('umoci', 'new', '--image', image);
  await command('umoci', 'unpack', '--image', image, bundle);
  const root = join(bundle, 'rootfs');
  await mkdir(join(root, 'bin'));
  await mkdir(join(root, 'etc'));
  await copyFile('/bin/busybox', join(root, 'bin/busybox'));
  await symlink('busybox', join(root, 'bin/sh'));
  await writeFile(join(root, 'etc/motd'), 'first layer\n');
  await writeFile(join(root, 'etc/gone'), 'hidden by the second layer\n');
  await command('umoci', 'repack', '--refresh-bundle', '--image', image, bundle);
  await rm(join(root, 'etc/gone'));
  await writeFile(join(root, 'etc/second'), 'second layer\n');
  await command('umoci', 'repack', '--image', image, bundle);
  await command('umoci', 'config', '--image', image, '--config.cmd', '/bin/sh', '--config.env', 'A=b', '--config.workingdir', '/etc');
  return layout;
}

export interface RegistryPeer {
  readonly port: number;
  readonly host: string;
  stop(): Promise<void>;
}

/** bcrypt of `open-sesame`, as htpasswd -B makes it. */
const passwordFile = 'drover:$2y$05$abcdefghijklmnopqrstuutXu9KzOt.1yBoZUeFWoT/914/JfszCO\n';

/** Debian's docker-registry on a free port of the loopback. */
export async function startRegistry(directory: string, options: { readonly password?: boolean } = {}): Promise<RegistryPeer> {
  const port = await freePort();
  const config = join(directory, `registry-${port}.yml`);
  const passwords = join(directory, `htpasswd-${port}`);
  await writeFile(passwords, passwordFile);
  await writeFile(
    config,
    [
      'version: 0.1',
      'log: { level: error, accesslog: { disabled: true } }',
      `storage: { filesystem: { rootdirectory: ${join(directory, `registry-${port}`)} } }`,
      `http: { addr: "127.0.0.1:${port}" }`,
      ...(options.password === true ? [`auth: { htpasswd: { realm: drover, path: ${passwords} } }`] : []),
      '',
    ].join('\n'),
  );
  const child = spawn('docker-registry', ['serve', config], { stdio: 'ignore' });
  await answers(child, `http://127.0.0.1:${port}/v2/`);
  return { port, host: `127.0.0.1:${port}`, stop: () => end(child) };
}

export async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}

async function freePort(): Promise<number> {
  const server = createTcpServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

async function answers(child: ChildProcess, url: string): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (child.exitCode !== null) throw new Error(`the registry server ended with ${child.exitCode}`);
    try {
      const response = await fetch(url);
      await response.body?.cancel();
      return;
    } catch {
      // Not listening yet.
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  throw new Error('the registry server does not answer');
}

/** Something between the store and a registry that counts, cuts, holds and guards. */
export class RegistryProxy implements AsyncDisposable {
  readonly requests: { readonly method: string; readonly url: string; readonly headers: IncomingMessage['headers'] }[] = [];
  /** Bytes of a blob's body after which the connection is cut, taken from the front for each answer; empty: never. */
  readonly cuts: number[] = [];
  /** Answers a request itself when it returns true. */
  intercept: (request: IncomingMessage, response: ServerResponse) => boolean = () => false;
  /** Awaited after so many bytes of a blob. */
  hold: { readonly afterBytes: number; readonly until: Promise<void>; readonly reached: () => void } | undefined;
  /** Bytes of body that were sent for each path. */
  readonly sent = new Map<string, number>();
  readonly #server: Server;
  readonly #upstream: string;

  constructor(upstream: string) {
    this.#upstream = upstream;
    this.#server = createServer((incoming, outgoing) => this.#forward(incoming, outgoing));
  }

  async listen(): Promise<this> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return this;
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  blobRequests(): readonly string[] {
    return this.requests.filter((r) => r.url.includes('/blobs/')).map((r) => r.url);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, 'close');
  }

  #forward(incoming: IncomingMessage, outgoing: ServerResponse): void {
    this.requests.push({ method: incoming.method ?? '', url: incoming.url ?? '', headers: incoming.headers });
    if (this.intercept(incoming, outgoing)) return;
    const { authorization: _, ...headers } = incoming.headers;
    const onward = request(`http://${this.#upstream}${incoming.url}`, { method: incoming.method ?? 'GET', headers }, (answer) => {
      outgoing.writeHead(answer.statusCode ?? 500, answer.headers);
      const isBlob = incoming.url?.includes('/blobs/') === true && Number(answer.headers['content-length']) > 10_000;
      void this.#copy(incoming.url ?? '', answer, outgoing, isBlob).catch(() => outgoing.destroy());
    });
    onward.on('error', () => outgoing.destroy());
    incoming.pipe(onward);
  }

  async #copy(path: string, answer: IncomingMessage, outgoing: ServerResponse, isBlob: boolean): Promise<void> {
    const cut = isBlob ? this.cuts.shift() : undefined;
    let sent = 0;
    for await (const chunk of answer as AsyncIterable<Buffer>) {
      const rest = cut === undefined ? chunk : chunk.subarray(0, Math.max(0, cut - sent));
      sent += rest.length;
      if (rest.length > 0) await new Promise<void>((resolve) => outgoing.write(rest, () => resolve()));
      this.sent.set(path, (this.sent.get(path) ?? 0) + rest.length);
      if (cut !== undefined && sent >= cut) {
        outgoing.destroy();
        return;
      }
      if (isBlob && this.hold !== undefined && sent >= this.hold.afterBytes) {
        this.hold.reached();
        await this.hold.until;
      }
    }
    outgoing.end();
  }
}
