import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { connect } from 'node:tls';
import { DroverError, systemClock, type Clock } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { connectDrover } from '@drover/sdk';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { DataDirectory } from './data-directory.ts';
import { certificateCheckMs } from '../limits.ts';
import type { ControlPlane, ControlPlaneOptions } from './options.ts';
import { startControlPlane } from './server.ts';

let directory: string;
const running: ControlPlane[] = [];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-serve-'));
});
afterEach(async () => {
  for (const plane of running.splice(0)) await plane.close();
  await rm(directory, { recursive: true });
});

const loopback = { host: '127.0.0.1', port: 0 };

async function start(more: Partial<ControlPlaneOptions> = {}): Promise<ControlPlane> {
  const plane = await startControlPlane({
    dataDirectory: directory,
    listen: loopback,
    linkListen: loopback,
    logger: silentLogger,
    ...more,
  });
  running.push(plane);
  return plane;
}

async function refusal(more: Partial<ControlPlaneOptions> = {}): Promise<DroverError> {
  const outcome = await start(more).catch((error: unknown) => error);
  if (outcome instanceof DroverError) return outcome;
  throw new Error('the start was not refused');
}

const day = 86_400_000;

/** The system's clock with an adjustable offset. An adjustment wakes the loops that wait for the expiry of a certificate. */
class JumpClock implements Clock {
  #ahead = 0;
  readonly #waiting = new Set<() => void>();

  now(): number {
    return systemClock.now() + this.#ahead;
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (ms !== certificateCheckMs) {
      await systemClock.sleep(ms, signal);
      return;
    }
    signal?.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      this.#waiting.add(resolve);
      signal?.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
    });
  }

  /** Resolves when the woken loops wait again. */
  async jump(ms: number): Promise<void> {
    this.#ahead += ms;
    const woken = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of woken) wake();
    await vi.waitFor(() => expect(this.#waiting.size).toBe(woken.length));
  }
}

/** The certificate that a new connection receives, even if it is not valid now. */
async function certificateAt(port: number): Promise<{ readonly fingerprint: string; readonly notAfter: number }> {
  const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ALPNProtocols: ['h2'] });
  // The link's listener closes a connection without a client certificate after the handshake.
  socket.on('error', () => undefined);
  await once(socket, 'secureConnect');
  const { fingerprint256, valid_to } = socket.getPeerCertificate();
  socket.destroy();
  return { fingerprint: fingerprint256, notAfter: Date.parse(valid_to) };
}

describe('startControlPlane', () => {
  test('R-1: starts from nothing and serves', async () => {
    const plane = await start();
    const client = await connectDrover({ server: plane.address, token: plane.adminToken, caFingerprint: plane.caFingerprint });
    expect((await client.version()).store).toBe('sqlite');
    client.close();
    expect((await stat(directory)).mode & 0o077).toBe(0);
  });

  test('13.5: a start with another store is refused, instead of showing an empty fleet', async () => {
    await (await start()).close();
    const path = join(directory, 'server.json');
    await writeFile(path, (await readFile(path, 'utf8')).replace('"sqlite"', '"postgres"'));
    await expect(start()).rejects.toMatchObject({
      code: 'failed-precondition',
      message: expect.stringContaining('PostgreSQL, not in SQLite'),
    });
  });

  test('has the same ports, CA, token and sandboxes after a restart', async () => {
    const first = await start();
    const client = await connectDrover({ server: first.address, token: first.adminToken, caPem: first.caPem });
    const { id } = await client.sandboxes.create({ spec: { image: 'host' } });
    await first.close();
    const second = await start();
    expect([second.address, second.linkAddress, second.caFingerprint, second.adminToken]).toEqual([
      first.address,
      first.linkAddress,
      first.caFingerprint,
      first.adminToken,
    ]);
    // The same client reconnects automatically.
    expect((await client.sandboxes.get(id)).id).toBe(id);
    client.close();
  });

  test('refuses a second server on one directory, and names the process of the first', async () => {
    await start();
    const error = await refusal();
    expect(error.code).toBe('failed-precondition');
    expect(error.message).toContain(`process ${process.pid}`);
  });

  test('the lock of a killed server is free', async () => {
    const script = `
      import { DataDirectory } from ${JSON.stringify(join(import.meta.dirname, 'data-directory.ts'))};
      await DataDirectory.open(${JSON.stringify(directory)});
      process.stdout.write('held');
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--conditions=development', '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    try {
      await once(child.stdout, 'data');
      await expect(DataDirectory.open(directory)).rejects.toMatchObject({ code: 'failed-precondition' });
    } finally {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    (await DataDirectory.open(directory)).close();
  });

  test('reports a port in use in one sentence, and leaves nothing behind', async () => {
    const other = createServer();
    other.listen(0, '127.0.0.1');
    await once(other, 'listening');
    const { port } = other.address() as AddressInfo;
    try {
      for (const taken of [{ listen: { host: '127.0.0.1', port } }, { linkListen: { host: '127.0.0.1', port } }]) {
        const error = await refusal(taken);
        expect(error.code).toBe('port-in-use');
        expect(error.message).toContain(String(port));
      }
    } finally {
      other.close();
    }
    // The directory is free again.
    await start();
  });

  test('I-28: unreadable credentials fail the start', async () => {
    await (await start()).close();
    for (const [file, content] of [
      ['pki/ca-key.pem', 'no key'],
      ['admin-token', 'no token'],
      ['server.json', '{'],
      ['ticket-keys', 'short'],
    ] as const) {
      const path = join(directory, file);
      const good = await readFile(path);
      await writeFile(path, content);
      const error = await refusal();
      expect([file, error.code]).toEqual([file, 'invalid-config']);
      expect(error.hint).not.toBe('');
      await writeFile(path, good);
    }
    await start();
  });

  test('renews the certificates of both listeners before they expire; open connections stay open', async () => {
    const clock = new JumpClock();
    const plane = await start({ clock });
    const client = await connectDrover({ server: plane.address, token: plane.adminToken, caPem: plane.caPem });
    await client.version();
    const ports = [new URL(plane.address).port, new URL(`tcp://${plane.linkAddress}`).port].map(Number);
    const before = await Promise.all(ports.map(certificateAt));

    await clock.jump(10 * day);
    expect(await Promise.all(ports.map(certificateAt))).toEqual(before);
    // Two thirds of thirty days have passed.
    await clock.jump(11 * day);
    for (const [i, port] of ports.entries()) {
      await vi.waitFor(async () => expect((await certificateAt(port)).fingerprint).not.toBe(before[i]?.fingerprint), { timeout: 10_000 });
      expect((await certificateAt(port)).notAfter - (before[i]?.notAfter ?? 0)).toBeGreaterThan(20 * day);
    }
    // The new certificate becomes valid in three weeks, so only an earlier connection can be used.
    expect((await client.version()).store).toBe('sqlite');
    client.close();
  });

  test('stops at its signal', async () => {
    const stop = new AbortController();
    await start({ signal: stop.signal });
    stop.abort();
    // `close` is idempotent: this call waits for the close that the signal began.
    await running[0]?.close();
    await start();
  });
});
