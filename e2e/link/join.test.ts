import { once } from 'node:events';
import { readdir, readFile, stat } from 'node:fs/promises';
import { createSecureServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { Code, ConnectError } from '@connectrpc/connect';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { CredentialsStore, joinHost, loadIdentity } from '@drover/agent/link';
import { joinHost as acceptJoin } from '@drover/control-plane/identity';
import { DroverError } from '@drover/foundation';
import {
  createKeyAndRequest,
  formatJoinToken,
  hashSecret,
  newSecret,
  openCertificateAuthority,
  type CertificateAuthority,
} from '@drover/pki';
import { api } from '@drover/protocol';
import { newSandboxId } from '@drover/foundation';
import { describe, expect, it } from 'vitest';
import { World } from './harness.ts';

const sqlite = (directory: string): string => join(directory, 'store.sqlite');

interface Front {
  readonly url: string;
  /** The received requests, whatever their outcome. */
  requests: api.JoinRequest[];
  /** Whether to drop the next response after the join has completed. */
  dropNextResponse: boolean;
}

/** Serves the join part of the control plane's API. */
async function front(world: World, identity?: { readonly certificatePem: string; readonly keyPem: string }): Promise<Front> {
  const { certificatePem, keyPem } = identity ?? (await world.ca.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: [] }));
  const seen: api.JoinRequest[] = [];
  const handler = connectNodeAdapter({
    routes: (router) => {
      router.service(api.JoinService, {
        join: async (request) => {
          seen.push(request);
          try {
            const answer = await acceptJoin({ store: world.store, ca: world.ca, linkAddress: `127.0.0.1:${world.port}` }, request);
            if (!result.dropNextResponse) return answer;
          } catch (error) {
            const known = DroverError.from(error);
            throw new ConnectError(known.message, known.code === 'invalid-argument' ? Code.InvalidArgument : Code.PermissionDenied);
          }
          result.dropNextResponse = false;
          throw new ConnectError('the answer was lost', Code.Unavailable);
        },
      });
    },
  });
  const server = createSecureServer({ cert: certificatePem, key: keyPem, minVersion: 'TLSv1.3' }, handler);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  world.onClose(() => void server.close());
  const result: Front = { url: `https://127.0.0.1:${(server.address() as AddressInfo).port}`, requests: seen, dropNextResponse: false };
  return result;
}

async function token(
  world: World,
  options: { readonly uses?: number; readonly expiresInMs?: number; readonly ca?: CertificateAuthority } = {},
): Promise<string> {
  const secret = newSecret();
  await world.store.tokens.createJoin({
    hash: hashSecret(secret),
    expiresAt: Date.now() + (options.expiresInMs ?? 60_000),
    uses: options.uses ?? 1,
    labels: { rack: 'r1' },
  });
  return formatJoinToken({ caFingerprint: (options.ca ?? world.ca).fingerprint, secret });
}

describe('joining', () => {
  it('L-1, L-2: a host joins with a token, keeps its key to itself, and connects with the issued certificate', async () => {
    await using world = await World.open(sqlite);
    const { url, requests } = await front(world);
    const stateDir = join(world.directory, 'host');
    const { hostName, ...identity } = await joinHost({ url, token: await token(world), stateDir, hostname: 'rack1-a' });
    expect(identity).toMatchObject({ trustDomain: 'drover.test', labels: { rack: 'r1' }, linkAddress: `127.0.0.1:${world.port}` });
    expect(hostName).toBe('rack1-a');
    expect(await loadIdentity(stateDir)).toEqual(identity);
    expect(JSON.stringify(requests, (_key, value: unknown) => (typeof value === 'bigint' ? Number(value) : value))).not.toContain(
      'PRIVATE KEY',
    );
    for (const file of await readdir(join(stateDir, 'identity'))) {
      expect((await stat(join(stateDir, 'identity', file))).mode & 0o777).toBe(0o600);
    }
    const raw = await world.raw((await CredentialsStore.open(stateDir)).current);
    raw.register(identity.hostId);
    expect(await raw.frame('welcome')).toMatchObject({ trustDomain: 'drover.test' });
  });

  it('L-7: the id is stored before the join, and a join whose response was lost is repeated with it', async () => {
    await using world = await World.open(sqlite);
    const front1 = await front(world);
    const stateDir = join(world.directory, 'host');
    const options = { url: front1.url, token: await token(world), stateDir, hostname: 'rack1-a' };
    front1.dropNextResponse = true;
    await expect(joinHost(options)).rejects.toMatchObject({ code: 'control-plane-unreachable' });
    const kept = (await readFile(join(stateDir, 'identity', 'host-id'), 'utf8')).trim();
    // The single use of the token is spent, but by this host.
    expect(await joinHost(options)).toMatchObject({ hostId: kept });
    expect(await world.store.hosts.list()).toHaveLength(1);
  });

  it('L-3: used, expired and unknown tokens are refused with one sentence, and identically on the wire', async () => {
    await using world = await World.open(sqlite);
    const { url } = await front(world);
    const attempt = (name: string, given: string): Promise<unknown> =>
      joinHost({ url, token: given, stateDir: join(world.directory, name), hostname: name }).then(
        () => 'joined',
        (error: DroverError) => ({ code: error.code, message: error.message, wire: (error.cause as ConnectError).rawMessage }),
      );
    const used = await token(world);
    expect(await attempt('a', used)).toBe('joined');
    const unknown = formatJoinToken({ caFingerprint: world.ca.fingerprint, secret: newSecret() });
    const refusals = [await attempt('b', used), await attempt('c', await token(world, { expiresInMs: -1 })), await attempt('d', unknown)];
    for (const refusal of refusals) {
      expect(refusal).toEqual({
        code: 'join-refused',
        message: 'the control plane refused the join token: it is unknown, used up or expired',
        wire: 'the join was refused',
      });
    }
    await expect(joinHost({ url, token: 'nonsense', stateDir: join(world.directory, 'e'), hostname: 'e' })).rejects.toMatchObject({
      code: 'invalid-argument',
    });
  });

  it('L-3: a control plane of another CA does not receive the token', async () => {
    await using world = await World.open(sqlite);
    const honest = await front(world);
    const foreign = await openCertificateAuthority(join(world.directory, 'foreign'), { trustDomain: 'drover.test' });
    const options = { url: honest.url, token: await token(world, { ca: foreign }), stateDir: join(world.directory, 'h'), hostname: 'h' };
    await expect(joinHost(options)).rejects.toMatchObject({ code: 'ca-mismatch' });
    expect(honest.requests).toHaveLength(0);
  });

  it('L-1: a server with another certificate of the right CA does not receive the token', async () => {
    await using world = await World.open(sqlite);
    const { keyPem, csrDer } = createKeyAndRequest();
    // A sandbox's certificate is valid for servers too, and its holder can present the CA's certificate with it.
    const { certificatePem } = await world.ca.signSandbox(newSandboxId(), 'red.web', csrDer);
    const impostor = await front(world, { keyPem, certificatePem: certificatePem + world.ca.caPem });
    const options = { url: impostor.url, token: await token(world), stateDir: join(world.directory, 'h'), hostname: 'h' };
    await expect(joinHost(options)).rejects.toMatchObject({ code: 'ca-mismatch' });
    expect(impostor.requests).toHaveLength(0);
  });

  it("L-1: presenting the CA's certificate without its key proves nothing", async () => {
    await using world = await World.open(sqlite);
    const foreign = await openCertificateAuthority(join(world.directory, 'foreign'), { trustDomain: 'drover.test' });
    const issued = await foreign.issueControlPlane({ dnsNames: ['localhost'], ipAddresses: [] });
    const leaf = issued.certificatePem.split('-----END CERTIFICATE-----')[0] ?? '';
    const chain = `${leaf}-----END CERTIFICATE-----\n${world.ca.caPem}`;
    const impostor = await front(world, { keyPem: issued.keyPem, certificatePem: chain });
    const options = { url: impostor.url, token: await token(world), stateDir: join(world.directory, 'h'), hostname: 'h' };
    await expect(joinHost(options)).rejects.toBeInstanceOf(DroverError);
    expect(impostor.requests).toHaveLength(0);
  });

  it('L-3: an address without a server is one clear sentence', async () => {
    await using world = await World.open(sqlite);
    const options = { token: await token(world), stateDir: join(world.directory, 'h'), hostname: 'h' };
    await expect(joinHost({ ...options, url: 'https://127.0.0.1:1' })).rejects.toMatchObject({
      code: 'control-plane-unreachable',
      message: expect.stringContaining('https://127.0.0.1:1 cannot be reached'),
    });
    await expect(joinHost({ ...options, url: 'http://127.0.0.1' })).rejects.toMatchObject({ code: 'invalid-argument' });
  });
});
