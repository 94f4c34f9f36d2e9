import { X509Certificate } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { newHostId, systemClock, type HostId } from '@drover/foundation';
import { silentLogger } from '@drover/foundation/log';
import { createKeyAndRequest, hashSecret, openCertificateAuthority, thumbprintOf, type CertificateAuthority } from '@drover/pki';
import { link } from '@drover/protocol';
import { openStore } from '../store/open.ts';
import type { SandboxRow } from '../model/sandbox.ts';
import type { Store } from '../store/index.ts';
import { draft, readyHost, seen } from '../store/testing/fixtures.ts';
import { answerSigningRequest } from './signing.ts';
import { Registry } from './registry.ts';

const address = '10.88.0.7';
let directory: string;
let ca: CertificateAuthority;
let store: Store;
let registry: Registry;
let host: { readonly id: HostId; readonly epoch: number };
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-signing-'));
  ca = await openCertificateAuthority(join(directory, 'pki'), { trustDomain: 'drover' });
  store = await openStore(join(directory, 'drover.db'), { logger: silentLogger });
  host = await readyHost(store);
  const journal = { publish: () => undefined };
  registry = new Registry({ store, journal, replica: 'replica-1', clock: systemClock, logger: silentLogger });
});
afterAll(async () => {
  await store.close();
  await rm(directory, { recursive: true, force: true });
});

const sign = async (
  subject: MessageInitShape<typeof link.SigningRequestSchema>['subject'],
  csrDer: Uint8Array<ArrayBuffer>,
  from = host.id,
): Promise<link.SigningResponse> => {
  const request = create(link.SigningRequestSchema, { requestId: 'sign-1', csrDer, ...(subject === undefined ? {} : { subject }) });
  return await answerSigningRequest({ store, ca, registry }, from, request, silentLogger);
};
const request = async (): Promise<Uint8Array<ArrayBuffer>> => new Uint8Array(createKeyAndRequest().csrDer);
const starting = async (): Promise<SandboxRow> => {
  const row = await store.sandboxes.create(draft({ project: 'alpha' }));
  await store.sandboxes.place(row.id, host.id);
  await store.sandboxes.observe(host.id, host.epoch, [seen(row, 'STARTING', { address })]);
  return row;
};
const register = async (row: SandboxRow, answer: link.SigningResponse): Promise<string> => {
  const { certificatePem, bootstrapToken } = answer;
  const outcome = await registry.register({
    sandboxId: row.id,
    thumbprint: thumbprintOf(certificatePem),
    commonName: new X509Certificate(certificatePem).subject.replace('CN=', ''),
    project: row.project,
    name: row.name,
    tokenHash: hashSecret(bootstrapToken),
    hostId: host.id,
    peerAddress: address,
  });
  return outcome.kind === 'refused' ? outcome.why : outcome.kind;
};

describe('a signing request of a host over its link', () => {
  it('I-13: returns the certificate of a sandbox with the token that registers it', async () => {
    const row = await starting();
    const answer = await sign({ case: 'sandboxId', value: row.id }, await request());
    expect(answer.error).toBeUndefined();
    expect(await store.identities.bearer(hashSecret(answer.bootstrapToken))).toEqual({
      sandboxId: row.id,
      scope: 'register',
      thumbprint: thumbprintOf(answer.certificatePem),
    });
    expect(await register(row, answer)).toBe('welcome');
  });

  it('I-13: for a repeated request, the first certificate that registers is the only one', async () => {
    const row = await starting();
    const csr = await request();
    const subject = { case: 'sandboxId', value: row.id } as const;
    const [lost, arrived] = [await sign(subject, csr), await sign(subject, csr)];
    expect(await register(row, arrived)).toBe('welcome');
    expect(await register(row, lost)).toBe('replay');
    expect(await register(row, arrived)).toBe('welcome');
    // The next start has another key, and so another request.
    expect(await register(row, await sign(subject, await request()))).toBe('welcome');
    expect(await register(row, arrived)).toBe('replay');
  });

  it('I-5, I-13: a host receives neither certificate nor token for a sandbox that is not placed on it or is to be deleted', async () => {
    const [row, deleted] = [await starting(), await starting()];
    await store.sandboxes.setDesired(deleted.id, 'deleted');
    for (const answer of [
      await sign({ case: 'sandboxId', value: row.id }, await request(), newHostId()),
      await sign({ case: 'sandboxId', value: deleted.id }, await request()),
      await sign({ case: 'sandboxId', value: 'sb-0000000000000000' }, await request()),
    ]) {
      expect(answer).toMatchObject({ certificatePem: '', bootstrapToken: '', error: { code: 'permission-denied' } });
    }
    const malformed = await sign({ case: 'sandboxId', value: row.id }, new Uint8Array([1, 2, 3]));
    expect(malformed).toMatchObject({ bootstrapToken: '', error: { code: 'invalid-argument' } });
  });

  it('L-2: returns the certificate of a host without a token', async () => {
    const answer = await sign({ case: 'host', value: true }, await request());
    expect([answer.error, answer.bootstrapToken]).toEqual([undefined, '']);
    expect(answer.certificatePem).toContain('BEGIN CERTIFICATE');
  });
});
