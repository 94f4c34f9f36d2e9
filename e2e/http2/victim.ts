/**
 * A process under attack: one of Drover's listeners or clients alone. The parent starts it with the name of the listener or client and a
 * directory, and communicates over IPC. It needs --expose-gc.
 */
import { connect, createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { create } from '@bufbuild/protobuf';
import { AgentLink, CredentialsStore, joinHost, saveIdentity } from '@drover/agent/link';
import { FakeSandboxes, noImages, noVolumes } from '@drover/agent/link/testing';
import { startControlPlane } from '@drover/control-plane';
import { World } from '@drover/control-plane/sandbox-facing/testing';
import { connectInit } from '@drover/control-plane/sessions/testing';
import { newHostId, newSandboxId, parseName, parseProject, canonicalCommonName, systemClock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { GatewayClient } from '@drover/gateway';
import { serveControlAlone } from '@drover/gateway/control/testing';
import { serveInitAlone } from '@drover/init/server/testing';
import { createKeyAndRequest, formatJoinToken, newSecret, openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { link } from '@drover/protocol';
import { connectDrover } from '@drover/sdk';

/** The data that a peer of the listener needs. */
export interface Listening {
  /** Ports by the listener's name, or the path of a Unix socket. */
  readonly at: Readonly<Record<string, number | string>>;
  /** Certificates that the listener accepts, PEM; absent where it requires none. */
  readonly credentials?: Readonly<Record<string, { readonly cert: string; readonly key: string }>>;
  readonly caPem?: string;
}

export type Question = { readonly ask: 'memory' } | { readonly ask: 'dial'; readonly at: number | string; readonly withinMs: number };
export type Answer = { readonly listening: Listening } | { readonly rss: number } | { readonly dialled: string };

const [, , name = '', directory = ''] = process.argv;
const collect = (globalThis as unknown as { readonly gc: () => void }).gc;

async function hostCredentials(ca: CertificateAuthority): Promise<{ readonly cert: string; readonly key: string }> {
  const { keyPem: key, csrDer } = createKeyAndRequest();
  const { certificatePem: cert } = await ca.signHost(newHostId(), csrDer);
  return { cert, key };
}

const listeners: Readonly<Record<string, () => Promise<Listening>>> = {
  'control-plane': async () => {
    const listen = { host: '127.0.0.1', port: 0 };
    const { address, linkAddress, caPem } = await startControlPlane({
      dataDirectory: directory,
      listen,
      linkListen: listen,
      logger: silentLogger,
    });
    const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover' });
    const at = { api: Number(new URL(address).port), link: Number(linkAddress.split(':')[1]) };
    return { at, caPem, credentials: { link: await hostCredentials(ca) } };
  },
  'sandbox-facing': async () => {
    const world = await World.open();
    const { origin, credentials } = await world.box(await world.host());
    const { hostId, ...inbound } = origin;
    const server = createServer((socket) => world.listener.accept(hostId, create(link.SandboxInboundSchema, inbound), socket));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { certificatePem: cert, keyPem: key } = credentials;
    const at = { 'sandbox-facing': (server.address() as AddressInfo).port };
    return { at, caPem: world.ca.caPem, credentials: { 'sandbox-facing': { cert, key } } };
  },
  init: async () => {
    const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover.test' });
    const { keyPem, csrDer } = createKeyAndRequest();
    const commonName = canonicalCommonName(parseProject('red'), parseName('box'));
    const { certificatePem } = await ca.signSandbox(newSandboxId(), commonName, csrDer);
    const port = await serveInitAlone({ caPem: ca.caPem, certificatePem, keyPem }, ca.names.controlPlane());
    const { certificatePem: cert, keyPem: key } = await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: [] });
    return { at: { init: port }, caPem: ca.caPem, credentials: { init: { cert, key } } };
  },
  gateway: async () => {
    const path = join(directory, 'control.sock');
    await serveControlAlone(path);
    return { at: { gateway: path } };
  },
};

/** Makes one connection and one call. @throws the outcome of the call, which never succeeds with these peers */
type Client = (at: number | string, ca: CertificateAuthority, signal: AbortSignal) => Promise<void>;

const clients: Readonly<Record<string, Client>> = {
  session: async (at, ca, signal) => {
    const { certificatePem: certPem, keyPem } = await identityOf(ca);
    const connection = await connectInit(tunnelTo(at as number), newSandboxId(), { certPem, keyPem, caPem: ca.caPem }, systemClock, signal);
    try {
      const requests = async function* () {
        yield { id: 1n, payload: { case: 'hello' as const, value: {} } };
        await new Promise((resolve) => signal.addEventListener('abort', resolve));
      };
      for await (const response of connection.client.session(requests(), { signal })) void response;
    } finally {
      await connection.close();
    }
  },
  'agent-link': async (at, ca, signal) => {
    const id = newHostId();
    const stateDir = join(directory, id);
    const { cert: certificatePem, key: keyPem } = await hostCredentials(ca);
    const address = `127.0.0.1:${at}`;
    const { trustDomain } = ca.names;
    await saveIdentity(stateDir, { hostId: id, trustDomain, linkAddress: address, labels: {}, keyPem, certificatePem, caPem: ca.caPem });
    const info = {
      describe: () => ({
        hostname: 'h',
        labels: {},
        zone: '',
        capacity: { cpuMillis: 1, memoryBytes: 1, diskBytes: 1, slots: 1 },
        runtimes: [],
        bootId: 'b',
      }),
      load: () => ({ loadMilli: 0, memoryAvailableBytes: 1, diskAvailableBytes: 1 }),
    };
    const credentials = await CredentialsStore.open(stateDir);
    const agent = new AgentLink({
      credentials,
      address,
      sandboxes: new FakeSandboxes(),
      images: noImages,
      volumes: noVolumes,
      info,
      random: () => 0,
    });
    const life = new AbortController();
    const ended = agent.run(life.signal);
    while (agent.reconnects === 0 && !signal.aborted) await sleep(5);
    life.abort();
    await ended;
  },
  sdk: async (at, ca, signal) => {
    const client = await connectDrover({ server: `https://127.0.0.1:${at}`, token: 'none', caPem: ca.caPem });
    try {
      await client.version(signal);
    } finally {
      client.close();
    }
  },
  join: async (at, ca, signal) => {
    const token = formatJoinToken({ caFingerprint: ca.fingerprint, secret: newSecret() });
    await joinHost({ url: `https://127.0.0.1:${at}`, token, stateDir: join(directory, newHostId()), hostname: 'h', signal });
  },
  'gateway-client': async (at) => {
    const client = new GatewayClient(String(at));
    try {
      await client.health();
    } finally {
      client.close();
    }
  },
};

/** Issued once, because these peers accept any certificate. */
let identity: ReturnType<CertificateAuthority['issueControlPlane']> | undefined;
async function identityOf(ca: CertificateAuthority): ReturnType<CertificateAuthority['issueControlPlane']> {
  return await (identity ??= ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] }));
}

/** Returns a stream with the properties of a link tunnel: it is in JavaScript, and its writes stay pending while the peer responds. */
function tunnelTo(port: number): Duplex {
  const socket = connect(port, '127.0.0.1');
  const tunnel: Duplex = new Duplex({
    read: () => void socket.resume(),
    write: (chunk: Buffer, _encoding, done) => void socket.write(chunk, () => setTimeout(done, 30)),
    final: (done) => void socket.end(done),
    destroy: (error, done) => {
      socket.destroy();
      done(error);
    },
  });
  socket.on('data', (chunk) => {
    if (!tunnel.push(chunk)) socket.pause();
  });
  socket.on('end', () => tunnel.push(null));
  socket.on('error', (error) => tunnel.destroy(error));
  socket.on('close', () => tunnel.destroy());
  return tunnel;
}

function answer(value: Answer): void {
  process.send?.(value);
}

const client = clients[name];
const ca = client === undefined ? undefined : await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover.test' });
process.on('message', (question: Question) => {
  if (question.ask === 'memory') {
    collect();
    // The second collection frees finalized objects.
    setImmediate(() => {
      collect();
      answer({ rss: process.memoryUsage().rss });
    });
  } else if (client !== undefined && ca !== undefined) {
    client(question.at, ca, AbortSignal.timeout(question.withinMs)).then(
      () => answer({ dialled: 'ended' }),
      (error: unknown) => answer({ dialled: String(error) }),
    );
  }
});
process.on('disconnect', () => process.exit());
answer({ listening: (await listeners[name]?.()) ?? { at: {} } });
