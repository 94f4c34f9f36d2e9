import { setTimeout as delay } from 'node:timers/promises';
import { create } from '@bufbuild/protobuf';
import { DroverError, FakeClock, newHostId, newSandboxId } from '@drover/foundation';
import { createKeyAndRequest, openCertificateAuthority } from '@drover/pki';
import { link, sandbox } from '@drover/protocol';
import { status } from '@grpc/grpc-js';
import { X509Certificate } from 'node:crypto';
import { join } from 'node:path';
import type { Operation } from '@drover/control-plane/hub';
import { describe, expect, it } from 'vitest';
import { hostCapacity, RawHost, until, World } from './harness.ts';

export type StoreUrl = (directory: string) => string | Promise<string>;

const inspect = (sandboxId: string): Operation => ({ case: 'inspect', value: create(link.InspectSandboxSchema, { sandboxId }) });
const list: Operation = { case: 'list', value: create(link.ListSandboxesSchema) };
const createSandbox = (sandboxId: string): Operation => ({
  case: 'create',
  value: create(link.CreateSandboxSchema, { sandbox: { sandboxId, generation: 1n }, name: 'x', spec: { image: 'host' } }),
});
const coded = (code: string): unknown => expect.objectContaining({ code });

/** Runs the link's specifications (1.7) with the real link server and real agents over real TLS, on one kind of store. */
export function linkSuite(kind: string, storeUrl: StoreUrl): void {
  describe(`the host link on ${kind}`, () => {
    describe('the stream', () => {
      it('L-10, L-12: a host is ready while it is connected, down after its stream drops, and ready after a reconnect', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        const first = await world.connected(host);
        expect(first).toMatchObject({ connected: true, owner: 'replica-1', capacity: hostCapacity, runtimes: ['fake'] });

        host.relay.refusing = true;
        host.relay.cut();
        await until('the host is down', async () => !(await world.row(host.id)).connected);
        expect(world.server.isConnected(host.id)).toBe(false);

        host.relay.refusing = false;
        const again = await world.connected(host);
        expect(again.connected).toBe(true);
        expect(again.epoch).toBeGreaterThan(first.epoch);
        expect(again.downSince).toBeUndefined();
      });

      it('L-6: any first frame except Register ends the stream with INVALID_ARGUMENT', async () => {
        await using world = await World.open(storeUrl);
        const raw = await world.raw(await world.identity());
        raw.send({ case: 'heartbeat', value: { sequence: 1n } });
        expect(await raw.status).toMatchObject({ code: status.INVALID_ARGUMENT });
      });

      it('L-6: a second Register ends the stream with INVALID_ARGUMENT', async () => {
        await using world = await World.open(storeUrl);
        const identity = await world.identity();
        const raw = await world.raw(identity);
        raw.register(identity.hostId);
        await raw.frame('welcome');
        raw.register(identity.hostId);
        expect(await raw.status).toMatchObject({ code: status.INVALID_ARGUMENT });
      });

      it("L-5: a Register with another id than the certificate's is refused", async () => {
        await using world = await World.open(storeUrl);
        const [mine, other] = [await world.identity(), await world.identity()];
        const raw = await world.raw(mine);
        raw.register(other.hostId);
        expect(await raw.status).toMatchObject({ code: status.PERMISSION_DENIED });
        expect((await world.row(other.hostId)).connected).toBe(false);
      });

      it('L-5: a peer without a certificate of the CA cannot connect, and a sandbox is no host', async () => {
        await using world = await World.open(storeUrl);
        const identity = await world.identity();
        const anonymous = new RawHost(world.client({ caPem: world.ca.caPem }));
        expect(await anonymous.status).toMatchObject({ code: status.UNAVAILABLE, details: expect.stringMatching(/certificate/) });

        const elsewhere = await openCertificateAuthority(join(world.directory, 'other-ca'), { trustDomain: 'drover.test' });
        const { keyPem, csrDer } = createKeyAndRequest();
        const { certificatePem } = await elsewhere.signHost(identity.hostId, csrDer);
        const foreign = await (await world.raw({ ...identity, keyPem, certificatePem })).status;
        expect(foreign).toMatchObject({ code: status.UNAVAILABLE });
        expect(foreign.details).not.toMatch(/ServerName/);
        expect(world.server.stats().hosts).toBe(0);

        const own = createKeyAndRequest();
        const ofSandbox = await world.ca.signSandbox(newSandboxId(), 'box', own.csrDer);
        const impersonator = await world.raw({ ...identity, keyPem: own.keyPem, certificatePem: ofSandbox.certificatePem });
        impersonator.register(identity.hostId);
        expect(await impersonator.status).toMatchObject({ code: status.PERMISSION_DENIED });
      });

      it('L-9, L-10: heartbeats keep a host alive; a silent one is marked down and receives GoAway', async () => {
        const clock = new FakeClock(Date.now());
        await using world = await World.open(storeUrl, { clock });
        const identity = await world.identity();
        const raw = await world.raw(identity);
        raw.register(identity.hostId);
        await raw.frame('welcome');
        for (let second = 0; second < 60; second += 10) {
          await clock.advance(10_000);
          raw.send({ case: 'heartbeat', value: { sequence: BigInt(second), loadMilli: second, memoryAvailableBytes: 77n } });
          await delay(20);
        }
        await clock.advance(1_000);
        await until('the heartbeat is stored', async () => {
          await clock.advance(1_000);
          return (await world.row(identity.hostId)).loadMilli === 50;
        });
        expect(await world.row(identity.hostId)).toMatchObject({ connected: true, memoryAvailableBytes: 77 });

        await until('it receives GoAway', async () => {
          await clock.advance(1_000);
          return raw.frames.some((frame) => frame.case === 'goAway');
        });
        expect(await raw.frame('goAway')).toMatchObject({ reason: link.GoAway_Reason.SILENT });
        await until('the host is down', async () => !(await world.row(identity.hostId)).connected);
      });

      it('L-11: a second stream of the same host supersedes the first, whose late end changes nothing', async () => {
        await using world = await World.open(storeUrl);
        const identity = await world.identity();
        const id = identity.hostId;
        const ends: number[] = [];
        world.server.on({ hostDisconnected: (_host, epoch) => ends.push(epoch) });
        const first = await world.raw(identity);
        first.register(id);
        const { epoch: firstEpoch } = await first.frame('welcome');
        const lost = expect(world.server.call(id, list)).rejects.toEqual(coded('host-unavailable'));
        const second = await world.raw(identity);
        second.register(id);
        const { epoch: secondEpoch } = await second.frame('welcome');
        expect(secondEpoch).toBeGreaterThan(firstEpoch);
        expect(await first.frame('goAway')).toMatchObject({ reason: link.GoAway_Reason.SUPERSEDED });
        await lost;

        const kept = world.server.call(id, list);
        const { id: commandId } = await second.frame('command');
        // The late frames and the end of the first stream.
        first.send({ case: 'result', value: { commandId } });
        first.call.cancel();
        first.client.close();
        await delay(100);
        expect(await world.row(id)).toMatchObject({ connected: true, epoch: Number(secondEpoch) });
        expect(world.server.stats()).toMatchObject({ hosts: 1, pendingCommands: 1 });
        second.send({ case: 'result', value: { commandId, value: { case: 'sandboxes', value: {} } } });
        expect(await kept).toMatchObject({ case: 'sandboxes' });
        expect(ends).toEqual([Number(firstEpoch)]);
      });

      it('L-4: a removed host receives GoAway, is cut off, and is refused from then on, also by another replica', async () => {
        const clock = new FakeClock(Date.now());
        await using world = await World.open(storeUrl, { clock });
        const host = await world.host();
        await world.connected(host);
        const identity = host.credentials.current;
        const other = world.newServer('replica-2');
        world.onClose(() => other.close());
        const { port } = await other.listen({ host: '127.0.0.1', port: 0 });

        await world.store.hosts.remove(host.id, { force: false });
        // The replica that holds the stream detects the removal, whichever replica removed the host.
        await until('the host is disconnected', async () => {
          await clock.advance(1_000);
          return !world.server.isConnected(host.id);
        });
        expect(await host.ended).toBe('removed');
        for (const at of [world.port, port]) {
          const raw = await world.raw(identity, at);
          raw.register(host.id);
          expect(await raw.frame('goAway')).toMatchObject({ reason: link.GoAway_Reason.REMOVED });
          expect(await raw.status).toMatchObject({ code: status.PERMISSION_DENIED });
        }
      });

      it('L-12: after many failed tries a host has one connection, and no other dial is pending', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        host.relay.refusing = true;
        host.relay.cut();
        await until('the host has tried a few times', () => host.link.reconnects > 4);
        host.relay.refusing = false;
        await world.connected(host);
        await delay(1_500); // longer than grpc-js's own backoff
        expect(host.relay.connections).toBe(1);
        expect(world.server.stats().connections).toBe(1);
      });

      it('L-12: the ramp refuses hosts with a time to return, and all of them connect', async () => {
        await using world = await World.open(storeUrl, { ramp: { perSecond: 10, burst: 2, maxDelayMs: 5_000 } });
        const hosts = await Promise.all(Array.from({ length: 14 }, () => world.host()));
        await until('all are connected', () => world.server.stats().hosts === hosts.length);
        const { refusedByRamp } = world.server.stats();
        expect(refusedByRamp).toBeGreaterThan(0);
        // The reserved time is honoured: no host is refused repeatedly.
        expect(refusedByRamp).toBeLessThan(hosts.length * 2);
      });
    });

    describe('certificates', () => {
      it('L-2: a host certificate past two thirds of its life is renewed on the open stream, and the next connection uses it', async () => {
        // Certificates are valid from five minutes in the past, so with a minute left two thirds have already passed.
        await using world = await World.open(storeUrl, { hostLifetimeMs: 60_000 });
        const host = await world.host();
        const before = host.credentials.current;
        const { epoch } = await world.connected(host);
        await until('the certificate is new', () => host.credentials.current.certificatePem !== before.certificatePem);
        const after = host.credentials.current;
        expect(after.keyPem).not.toBe(before.keyPem);
        expect(new X509Certificate(after.certificatePem).subjectAltName).toBe(`URI:spiffe://drover.test/host/${host.id}`);
        expect(await world.row(host.id)).toMatchObject({ connected: true, epoch });
        host.relay.cut();
        await until('the host has reconnected', async () => (await world.row(host.id)).epoch > epoch);
      });

      it('I-5: a sandbox placed on the host gets a certificate under its own name; any other name is refused', async () => {
        await using world = await World.open(storeUrl);
        const [host, other] = [await world.host(), await world.host()];
        await world.connected(host);
        await world.connected(other);
        const here = await world.sandbox({ hostId: host.id, name: 'web' });
        const { csrDer } = createKeyAndRequest();
        const signal = AbortSignal.timeout(10_000);
        const signed = await host.link.signSandboxCertificate(here.id, csrDer, signal);
        const certificate = new X509Certificate(signed.certificatePem);
        expect(certificate.subject).toBe('CN=red.web');
        expect(certificate.subjectAltName).toBe(`URI:spiffe://drover.test/sandbox/${here.id}`);
        expect(signed.caPem).toBe(world.ca.caPem);
        await expect(other.link.signSandboxCertificate(here.id, csrDer, signal)).rejects.toEqual(coded('permission-denied'));
        await expect(host.link.signSandboxCertificate(newSandboxId(), csrDer, signal)).rejects.toEqual(coded('permission-denied'));
      });

      it('I-6: a signature requested while the link is down is issued after the reconnect', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const here = await world.sandbox({ hostId: host.id });
        host.relay.refusing = true;
        host.relay.cut();
        await until('the link is down', () => !host.link.connected);
        const { csrDer } = createKeyAndRequest();
        const signed = host.link.signSandboxCertificate(here.id, csrDer, AbortSignal.timeout(20_000));
        host.relay.refusing = false;
        expect((await signed).certificatePem).toContain('BEGIN CERTIFICATE');
      });
    });

    describe('commands', () => {
      it('L-14: duplicate, late and unknown results are dropped, and the stream goes on', async () => {
        await using world = await World.open(storeUrl);
        const identity = await world.identity();
        const raw = await world.raw(identity);
        raw.register(identity.hostId);
        await raw.frame('welcome');
        const answered = world.server.call(identity.hostId, list);
        const { id: commandId } = await raw.frame('command');
        const result = { commandId, value: { case: 'sandboxes' as const, value: {} } };
        raw.send({ case: 'result', value: result });
        raw.send({ case: 'result', value: result }); // duplicate
        expect(await answered).toMatchObject({ case: 'sandboxes' });

        const impatient = new AbortController();
        const left = world.server.call(identity.hostId, list, { signal: impatient.signal });
        const { id: lateId } = await raw.frame('command');
        impatient.abort();
        await expect(left).rejects.toEqual(coded('cancelled'));
        raw.send({ case: 'result', value: { ...result, commandId: lateId } }); // late
        raw.send({ case: 'result', value: { ...result, commandId: 'c-nobody' } }); // unknown
        await until('three results are dropped', () => world.server.stats().droppedResults === 3);
        expect(world.server.stats()).toMatchObject({ hosts: 1, pendingCommands: 0 });
      });

      it('L-14: an operation that the agent does not know returns UNIMPLEMENTED', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const unknown = { case: undefined, value: undefined } as unknown as Operation;
        const addons: Operation = { case: 'applyAddons', value: create(link.ApplyAddonsSchema) };
        await expect(world.server.call(host.id, unknown)).rejects.toEqual(coded('unimplemented'));
        await expect(world.server.call(host.id, addons)).rejects.toEqual(coded('unimplemented'));
      });

      it('L-13: a deadline ends the wait', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const gate = Promise.withResolvers<void>();
        host.sandboxes.gate = gate.promise;
        const call = world.server.call(host.id, createSandbox(newSandboxId()), { deadline: new Date(Date.now() + 100) });
        await expect(call).rejects.toEqual(coded('timed-out'));
        gate.resolve();
        // L-21: the work continued.
        await until('the sandbox exists', () => host.sandboxes.list().length === 1);
      });

      it('L-15: a call to a disconnected host fails without delay', async () => {
        await using world = await World.open(storeUrl);
        const started = performance.now();
        await expect(world.server.call(newHostId(), list)).rejects.toEqual(coded('host-unavailable'));
        await expect(world.server.openTunnel(newHostId(), { sandboxId: newSandboxId(), port: 80 })).rejects.toEqual(
          coded('host-unavailable'),
        );
        expect(performance.now() - started).toBeLessThan(200);
      });

      it('L-16: a dropped stream fails every pending call on it without delay', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const gate = Promise.withResolvers<void>();
        host.sandboxes.gate = gate.promise;
        const calls = Array.from({ length: 20 }, () => world.server.call(host.id, createSandbox(newSandboxId())));
        const outcomes = Promise.allSettled(calls);
        await until('all creates have started', () => host.sandboxes.creates === 20);
        host.relay.cut();
        for (const outcome of await outcomes) expect(outcome).toMatchObject({ status: 'rejected', reason: coded('host-unavailable') });
        expect(world.server.stats().pendingCommands).toBe(0);
        gate.resolve();
      });

      it('L-17: a slow host fills a bounded queue, then callers get RESOURCE_EXHAUSTED; queued commands arrive in order', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        host.relay.hold();
        const value = new Uint8Array(256 * 1024);
        const sandboxId = newSandboxId();
        const start = (at: number): Operation => ({
          case: 'start',
          value: create(link.StartSandboxSchema, { sandbox: { sandboxId, generation: BigInt(at) }, secrets: [{ name: 'large', value }] }),
        });
        const outcomes: Promise<unknown>[] = [];
        let refused: DroverError | undefined;
        for (let at = 0; refused === undefined && at < 2_000; at++) {
          const call = world.server.call(host.id, start(at));
          outcomes.push(
            call.then(
              () => undefined,
              (error: DroverError) => (error.code === 'queue-full' ? (refused = error) : error),
            ),
          );
          await delay(1);
        }
        expect(refused).toMatchObject({ code: 'queue-full', status: 8 });
        // The queue holds 8 MiB. The kernel's buffers and HTTP/2 windows hold the rest.
        expect(outcomes.length).toBeLessThan(200);
        host.relay.release();
        const answers = await Promise.all(outcomes);
        // The agent responds to each of them: it has no such sandbox.
        expect(answers.filter((answer) => (answer as DroverError).code === 'sandbox-not-found').length).toBe(outcomes.length - 1);
      });

      it('L-18: a slow command delays neither other commands nor heartbeats', async () => {
        await using world = await World.open(storeUrl, { heartbeatMs: 50 });
        const host = await world.host();
        await world.connected(host);
        const gate = Promise.withResolvers<void>();
        host.sandboxes.gate = gate.promise;
        const slow = world.server.call(host.id, createSandbox(newSandboxId()));
        await until('the create has started', () => host.sandboxes.creates === 1);
        expect(await world.server.call(host.id, list)).toMatchObject({ case: 'sandboxes' });
        const { lastSeenAt } = await world.row(host.id);
        await until('a heartbeat is stored', async () => (await world.row(host.id)).lastSeenAt > lastSeenAt);
        gate.resolve();
        expect(await slow).toMatchObject({ case: 'sandbox' });
      });

      it('L-19: a command repeated after a reconnect is not executed twice, while it runs or after it', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        const { epoch } = await world.connected(host);
        const gate = Promise.withResolvers<void>();
        host.sandboxes.gate = gate.promise;
        const operation = createSandbox(newSandboxId());
        const lost = world.server.call(host.id, operation, { commandId: 'c-once' });
        await until('the create has started', () => host.sandboxes.creates === 1);
        host.relay.cut();
        await expect(lost).rejects.toEqual(coded('host-unavailable'));
        await until('the host has reconnected', async () => world.server.isConnected(host.id) && (await world.row(host.id)).epoch > epoch);

        const running = world.server.call(host.id, operation, { commandId: 'c-once' });
        await delay(50);
        gate.resolve();
        expect(await running).toMatchObject({ case: 'sandbox' });
        expect(await world.server.call(host.id, operation, { commandId: 'c-once' })).toMatchObject({ case: 'sandbox' });
        expect(host.sandboxes.creates).toBe(1);
      });

      it('L-19: start of a deleted sandbox is NOT_FOUND; stop and destroy of it succeed', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const sandboxId = newSandboxId();
        const ref = { sandbox: { sandboxId, generation: 1n } };
        const start: Operation = { case: 'start', value: create(link.StartSandboxSchema, ref) };
        await expect(world.server.call(host.id, start)).rejects.toMatchObject({ code: 'sandbox-not-found', status: 5 });
        await expect(world.server.call(host.id, inspect(sandboxId))).rejects.toMatchObject({ status: 5 });
        await world.server.call(host.id, { case: 'stop', value: create(link.StopSandboxSchema, ref) });
        await world.server.call(host.id, { case: 'destroy', value: create(link.DestroySandboxSchema, ref) });
      });

      it("L-22: a host's observation is stored, then passed to listeners", async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const row = await world.sandbox({ hostId: host.id });
        const notified: string[] = [];
        world.server.on({ observed: (_host, seen) => notified.push(...seen.map((one) => one.sandboxId)) });
        host.sandboxes.set(row.id, { generation: BigInt(row.generation), state: sandbox.SandboxState.RUNNING, startCount: 1n });
        await until('the listener is notified', () => notified.includes(row.id));
        expect(await world.store.sandboxes.get(row.id)).toMatchObject({ observed: 'running' });
      });
    });

    describe('capacity', () => {
      it('L-8: after a restart of the control plane a host has its true allocatable capacity', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const placed = await world.sandbox({ hostId: host.id, cpuMillis: 1_500 });
        // Only the host knows this sandbox: its row moved away while the host was disconnected.
        host.sandboxes.set(newSandboxId(), {
          state: sandbox.SandboxState.RUNNING,
          resources: create(sandbox.ResourcesSchema, { cpuMillis: 1_000, memoryBytes: 1024n }),
        });
        host.sandboxes.set(placed.id, { generation: 1n, state: sandbox.SandboxState.RUNNING, startCount: 1n });
        await world.restart();
        await world.connected(host);
        expect((await world.row(host.id)).reserved).toMatchObject({ cpuMillis: 2_500, slots: 2 });
        expect(await world.store.sandboxes.get(placed.id)).toMatchObject({ observed: 'running', hostId: host.id });
      });

      it('L-24: concurrent placements never reserve more than fits', async () => {
        await using world = await World.open(storeUrl);
        const host = await world.host();
        await world.connected(host);
        const rows = await Promise.all(Array.from({ length: 12 }, () => world.sandbox({ cpuMillis: 1_000 })));
        const placed = await Promise.all(rows.map((row) => world.store.sandboxes.place(row.id, host.id)));
        expect(placed.filter(Boolean)).toHaveLength(4);
        expect((await world.row(host.id)).reserved.cpuMillis).toBe(4_000);
      });
    });
  });
}
