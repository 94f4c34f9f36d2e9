import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { connectDrover, type DroverClient } from '@drover/sdk';
import { DroverError } from '@drover/foundation';
import { openCertificateAuthority } from '@drover/pki';
import type { FakeSandboxes } from '@drover/agent/link/testing';
import { Child } from '../children.ts';
import type { Address } from '../control-plane-child.ts';
import { joinFakeHosts, signFakeHosts, startFakeHost, trustDomain } from '../fake-hosts.ts';
import { summarize, type Summary } from '../stats.ts';
import { BareShare, type Parts } from './bare-share.ts';

export interface Share {
  readonly whole: Ways;
  /** The same two ways over bare transports. */
  readonly bare: Ways;
}

export interface Ways {
  /** From the client's call to the command at the host. */
  readonly toCommand: Summary;
  /** From the host's report of the start to the request for the session's tunnel at the host. */
  readonly toTunnel: Summary;
}

/** A real control plane on SQLite with one host in memory: what is left of a create when the host takes no time. Beside it, in turn, bare transports. */
export async function controlPlaneShare(count: number, scratch: string): Promise<Share> {
  const directory = await mkdtemp(join(scratch, 'share-'));
  const life = new AbortController();
  try {
    const identities = await signFakeHosts(directory, 1);
    await joinFakeHosts(
      directory,
      identities.map(({ hostId }) => hostId),
    );
    await using plane = new Child('control-plane-child.ts', [directory]);
    const address = await plane.ask<Address>('start');
    const [identity] = identities;
    if (identity === undefined) throw new Error('no identity');
    const host = startFakeHost(identity, address.link, life.signal);
    while (!host.link.connected) await new Promise((resolve) => setTimeout(resolve, 5));
    const client = await connectDrover(address);
    const ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain });
    await using bareParts = new BareShare();
    const oneBare = await bareParts.start(
      { ...(await ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: ['127.0.0.1'] })), caPem: ca.caPem },
      identity,
    );
    const whole: Parts[] = [];
    const bare: Parts[] = [];
    for (let i = 0; i < count + warmUps; i++) {
      const ofBare = await oneBare();
      const { id, ...parts } = await one(host.sandboxes, client);
      if (i >= warmUps) {
        bare.push(ofBare);
        whole.push(parts);
      }
      await client.sandboxes.remove(id);
      await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: 20_000 });
    }
    client.close();
    life.abort();
    await host.ended;
    return { whole: waysOf(whole), bare: waysOf(bare) };
  } finally {
    life.abort();
    await rm(directory, { recursive: true, force: true });
  }
}

/** The first ones compile and fill caches. */
const warmUps = 20;

function waysOf(parts: readonly Parts[]): Ways {
  return { toCommand: summarize(parts.map(({ command }) => command)), toTunnel: summarize(parts.map(({ tunnel }) => tunnel)) };
}

async function one(sandboxes: FakeSandboxes, client: DroverClient): Promise<Parts & { readonly id: string }> {
  const asked = Promise.withResolvers<number>();
  const dialled = Promise.withResolvers<number>();
  const make = sandboxes.create.bind(sandboxes);
  sandboxes.create = async (command, progress) => {
    asked.resolve(performance.now());
    // Without an address there is nothing to dial (I-23). Told with the start, below, not before.
    const seen = await make(command, progress);
    return sandboxes.set(seen.sandboxId, { address: '10.0.0.2' });
  };
  sandboxes.dialled = async () => {
    dialled.resolve(performance.now());
    // No init behind it: the session gives up, and the sandbox is removed.
    return await Promise.reject(new DroverError('sandbox-not-running', 'there is no init in this measurement'));
  };
  try {
    const began = performance.now();
    const { id } = await client.sandboxes.create({ spec: { image: 'host', command: ['true'] } });
    const at = await asked.promise;
    return { id, command: at - began, tunnel: (await dialled.promise) - at };
  } finally {
    sandboxes.create = make;
    sandboxes.dialled = undefined;
  }
}
