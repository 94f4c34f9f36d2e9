import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { eventually } from './drover.ts';
import { tool } from './images.ts';

/**
 * A network outside of this machine: a namespace with one cable to it. It runs an HTTP server on port 8080, a TLS server on 8443 and a UDP
 * server on 53 that replies to every datagram. They record the addresses of their peers. The HTTP server accepts any protocol upgrade,
 * and then echoes.
 */
export class World implements AsyncDisposable {
  /** The private addresses of the cable: this machine's end, and the servers' end. */
  readonly hostAddress: string;
  readonly address: string;
  /** An address of the servers from a public range that is announced nowhere. */
  readonly publicAddress: string;
  readonly #namespace = `e2ew-${process.pid}`;
  readonly #servers: ReturnType<typeof startServers>;
  #output = '';
  #ended = false;

  private constructor(prefix: string, directory: string) {
    this.hostAddress = `${prefix}.1`;
    this.address = `${prefix}.2`;
    this.publicAddress = publicAddress(prefix);
    this.#servers = startServers(this.#namespace, directory);
    void this.#servers.then(() => (this.#ended = true));
    this.#servers.stdout.setEncoding('utf8').on('data', (text: string) => (this.#output += text));
  }

  /** @param prefix the first three bytes of the cable's network */
  static async create(prefix: string, directory: string): Promise<World> {
    const namespace = `e2ew-${process.pid}`;
    await tool('ip', 'netns', 'add', namespace);
    try {
      await tool('ip', 'link', 'add', namespace, 'type', 'veth', 'peer', 'name', 'uplink', 'netns', namespace);
      await tool('ip', 'address', 'add', `${prefix}.1/30`, 'dev', namespace);
      await tool('ip', 'link', 'set', namespace, 'up');
      const inside = ['-n', namespace];
      await tool('ip', ...inside, 'address', 'add', `${prefix}.2/30`, 'dev', 'uplink');
      await tool('ip', ...inside, 'address', 'add', `${publicAddress(prefix)}/32`, 'dev', 'uplink');
      for (const link of ['lo', 'uplink']) await tool('ip', ...inside, 'link', 'set', link, 'up');
      await tool('ip', ...inside, 'route', 'add', 'default', 'via', `${prefix}.1`);
      await tool('ip', 'route', 'add', `${publicAddress(prefix)}/32`, 'via', `${prefix}.2`);
      const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', join(directory, 'world.key')];
      await tool('openssl', 'req', '-x509', ...key, '-out', join(directory, 'world.crt'), '-days', '2', '-subj', '/CN=world');
      await writeFile(join(directory, 'world.mjs'), servers);
      const world = new World(prefix, directory);
      await eventually('the servers of the world listen', () => {
        if (world.#ended) throw new Error('the servers of the world ended');
        return world.#output.includes('ready\n');
      });
      world.#output = '';
      return world;
    } catch (error) {
      await execa('ip', ['link', 'delete', namespace], { reject: false });
      await execa('ip', ['netns', 'delete', namespace], { reject: false });
      throw error;
    }
  }

  /** Returns the addresses of the peers since the last call. */
  heard(): readonly string[] {
    const lines = this.#output.split('\n').filter((line) => line !== '');
    this.#output = '';
    return lines;
  }

  /**
   * Adds IPv6 addresses that accept packets and never respond: entries for neighbours that do not exist.
   * @returns the addresses, and the network that contains them
   */
  async silentAddresses(count: number): Promise<{ readonly addresses: readonly string[]; readonly network: string }> {
    const prefix = `fd5d:${process.pid.toString(16)}:`;
    await tool('ip', '-6', 'address', 'add', `${prefix}:1/64`, 'dev', this.#namespace, 'nodad');
    const addresses = Array.from({ length: count }, (_, index) => `${prefix}:${(index + 16).toString(16)}`);
    for (const address of addresses)
      await tool('ip', '-6', 'neighbour', 'add', address, 'lladdr', '02:00:00:00:00:99', 'dev', this.#namespace);
    return { addresses, network: `${prefix}:/64` };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#servers.kill('SIGKILL');
    await this.#servers;
    await execa('ip', ['link', 'delete', this.#namespace], { reject: false });
    await execa('ip', ['netns', 'delete', this.#namespace], { reject: false });
  }
}

/** Returns an address in 11.0.0.0/8, a range that is announced nowhere. Each prefix has a different one. */
function publicAddress(prefix: string): string {
  return prefix.replace(/^10\./, '11.').concat('.2');
}

function startServers(namespace: string, directory: string) {
  return execa('nsenter', [`--net=/run/netns/${namespace}`, '--', process.execPath, join(directory, 'world.mjs')], {
    cwd: directory,
    reject: false,
    stdin: 'ignore',
  });
}

const servers = `
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { createSocket } from 'node:dgram';
const answer = (request, response) => response.end('hello from the world: ' + request.headers.host + request.url + '\\n');
const http = createServer(answer);
const tls = createTlsServer({ key: readFileSync('world.key'), cert: readFileSync('world.crt') }, answer);
const heard = (socket) => console.log(socket.remoteAddress.replace('::ffff:', ''));
http.on('connection', heard).listen(8080);
http.on('upgrade', ({ headers }, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: ' + headers.upgrade + '\\r\\n\\r\\nswitched ');
  socket.pipe(socket).on('error', () => undefined);
});
tls.on('connection', heard).listen(8443);
const udp = createSocket('udp4');
udp.on('message', (_, from) => { console.log(from.address); udp.send('answer', from.port, from.address); });
udp.bind(53, () => console.log('ready'));
`;
