import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect as connectTcp } from 'node:net';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { create } from '@bufbuild/protobuf';
import { FakeClock, newSandboxId } from '@drover/foundation';
import { createLogger } from '@drover/foundation/log';
import { createKeyAndRequest } from '@drover/pki';
import { link } from '@drover/protocol';
import { status } from '@grpc/grpc-js';
import { describe, expect, it } from 'vitest';
import { until, World } from './harness.ts';

const sqlite = (directory: string): string => join(directory, 'store.sqlite');

/** Returns the serial number of the certificate that a new connection receives. */
async function serialShown(world: World): Promise<string> {
  const { caPem, keyPem, certificatePem } = await world.identity();
  const options = { ca: caPem, key: keyPem, cert: certificatePem, ALPNProtocols: ['h2'], checkServerIdentity: () => undefined };
  const socket = connect({ port: world.port, host: '127.0.0.1', ...options });
  await once(socket, 'secureConnect');
  const { serialNumber } = socket.getPeerCertificate();
  socket.destroy();
  return serialNumber;
}

describe('the TLS of the link', () => {
  it('L-12: hosts resume their TLS session after a drop, and after a restart of a control plane with the same ticket keys', async () => {
    await using world = await World.open(sqlite, { ticketKeys: randomBytes(48) });
    const host = await world.host();
    const { epoch } = await world.connected(host);
    await until('the host is connected', () => host.link.connected);
    expect(host.link.resumed).toBe(false);

    host.relay.cut();
    await until('the host has reconnected', async () => host.link.connected && (await world.row(host.id)).epoch === epoch + 1);
    expect(host.link.resumed).toBe(true);

    await world.restart();
    await until('the host has reconnected', async () => host.link.connected && (await world.row(host.id)).epoch === epoch + 2);
    expect(host.link.resumed).toBe(true);
  });

  it('L-12: a control plane with other ticket keys accepts a host with a full handshake', async () => {
    await using world = await World.open(sqlite);
    const host = await world.host();
    const { epoch } = await world.connected(host);
    await world.restart();
    await until('the host has reconnected', async () => host.link.connected && (await world.row(host.id)).epoch > epoch);
    expect(host.link.resumed).toBe(false);
  });

  it("L-2: the control plane's certificate is renewed in place: open streams stay, new connections receive the new one", async () => {
    const clock = new FakeClock(Date.now());
    await using world = await World.open(sqlite, { clock, ticketKeys: randomBytes(48) });
    const [staying, returning] = [await world.host(), await world.host()];
    const { epoch } = await world.connected(staying);
    const { epoch: firstEpoch } = await world.connected(returning);
    await until('the host is connected', () => returning.link.connected);
    const before = await serialShown(world);
    await world.rotate();
    expect(await serialShown(world)).not.toBe(before);
    expect(await world.server.call(staying.id, { case: 'list', value: create(link.ListSandboxesSchema) })).toMatchObject({
      case: 'sandboxes',
    });
    expect(await world.row(staying.id)).toMatchObject({ connected: true, epoch });
    // A session outlives the certificate of its first handshake.
    returning.relay.cut();
    await until('the host has reconnected', async () => returning.link.connected && (await world.row(returning.id)).epoch > firstEpoch);
    expect(returning.link.resumed).toBe(true);
  });

  it.each([
    ['the control plane', { controlPlaneLifetimeMs: -1_000 }],
    ['the host', { hostLifetimeMs: -1_000 }],
  ])('L-5: a host that cannot connect because the certificate of %s has expired names its clock', async (_, lifetimes) => {
    await using world = await World.open(sqlite, lifetimes);
    let log = '';
    await world.host({ logger: createLogger({ name: 'agent', destination: { write: (line: string) => void (log += line) } }) });
    await until('the log names the clock', () => /(?:expired|not valid now): the clock of this machine says \d{4}-/.test(log));
  });

  it('L-12: silent connections prevent no handshake, and are closed at a limit', async () => {
    const clock = new FakeClock(Date.now());
    await using world = await World.open(sqlite, { clock });
    // More than the limit of concurrent handshakes.
    const silent = await Promise.all(
      Array.from({ length: 100 }, async () => {
        const socket = connectTcp(world.port, '127.0.0.1');
        socket.on('error', () => undefined);
        world.onClose(() => void socket.destroy());
        await once(socket, 'connect');
        return { closed: once(socket, 'close') };
      }),
    );
    await until('all are connected', () => world.server.stats().connections === silent.length);
    const host = await world.host();
    await world.connected(host);
    await clock.advance(14_000);
    expect(world.server.stats().connections).toBe(silent.length + 1);
    await clock.advance(2_000);
    await Promise.all(silent.map(({ closed }) => closed));
    expect(world.server.isConnected(host.id)).toBe(true);
  });

  it('L-12: a dripping handshake, a host without a call, an unregistered host and a sandbox are cut off at the limits', async () => {
    const clock = new FakeClock(Date.now());
    await using world = await World.open(sqlite, { clock });
    const host = await world.host();
    await world.connected(host);
    const identity = await world.identity();

    const dripping = connectTcp(world.port, '127.0.0.1');
    dripping.on('error', () => undefined).resume();
    dripping.write(Buffer.from('16030300ff01', 'hex'));
    const { caPem, keyPem, certificatePem } = identity;
    const options = { ca: caPem, key: keyPem, cert: certificatePem, ALPNProtocols: ['h2'], checkServerIdentity: () => undefined };
    const callless = connect({ port: world.port, host: '127.0.0.1', ...options });
    callless.on('error', () => undefined).resume();
    const unregistered = await world.raw(identity);
    const own = createKeyAndRequest();
    const ofSandbox = await world.ca.signSandbox(newSandboxId(), 'box', own.csrDer);
    const impersonator = await world.raw({ ...identity, keyPem: own.keyPem, certificatePem: ofSandbox.certificatePem });
    expect(await impersonator.status).toMatchObject({ code: status.PERMISSION_DENIED });
    await until('all are connected', () => world.server.stats().connections === 5);

    // The longest of the limits, and the close grace.
    for (let passed = 0; passed < 18_000; passed += 1_000) {
      dripping.write(Buffer.alloc(1));
      await clock.advance(1_000);
    }
    expect(await unregistered.status).toMatchObject({ code: status.DEADLINE_EXCEEDED });
    await until('only the host is left', () => world.server.stats().connections === 1);
    expect(world.server.isConnected(host.id)).toBe(true);
  });
});
