import { create, toBinary } from '@bufbuild/protobuf';
import { anyPack, AnySchema } from '@bufbuild/protobuf/wkt';
import { newSecret } from '@drover/pki';
import { link, type control } from '@drover/protocol';
import type { TLSSocket } from 'node:tls';
import { FakeClock } from '@drover/foundation';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { accessTokenOf, connectCall, grpcCall, http1, http2, registerBytes, registerJson, type Http2Answer } from './testing/calls.ts';
import { issue, type Credentials } from './testing/certificates.ts';
import { World, type Box, type Origin } from './testing/world.ts';

/** One call that must be refused. */
interface Attempt {
  readonly origin: Origin;
  readonly credentials: Credentials;
  readonly method?: keyof (typeof control.ControlService)['method'];
  readonly token?: string;
  readonly names?: { readonly project: string; readonly name: string };
}

let world: World;
let host: Awaited<ReturnType<World['host']>>;
let elsewhere: Awaited<ReturnType<World['host']>>;

beforeAll(async () => {
  world = await World.open();
  host = await world.host();
  elsewhere = await world.host();
});
afterAll(async () => await world[Symbol.asyncDispose]());

const unpadded = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64').replace(/=+$/, '');
const concat = (...parts: readonly (Uint8Array | readonly number[])[]): Buffer => Buffer.concat(parts.map((part) => Buffer.from(part)));
/** A field of a protobuf message, shorter than 128 bytes. */
const lengthPrefixed = (key: number, bytes: Uint8Array): Buffer => concat([key, bytes.length], bytes);

/** Registers the sandbox and returns its access token. */
async function register(box: Box): Promise<string> {
  const session = http2(await world.as(box, 'h2'));
  const answer = await connectCall(session, 'register', registerBytes(box), box.token);
  session.destroy();
  return accessTokenOf(answer);
}

const uri = (box: Box): string => world.ca.names.sandbox(box.id);
const commonName = (box: Box): string => `${box.project}.${box.name}`;
const clientAuth = '1.3.6.1.5.5.7.3.2';

const cases: readonly (readonly [string, string, () => Promise<Attempt>])[] = [
  ['no token', 'the call carries no token', async () => ({ ...(await world.box(host)), token: '' })],
  ['a malformed token', 'the call carries no token', async () => ({ ...(await world.box(host)), token: 'two words' })],
  ['an unknown token', 'the token is unknown or has expired', async () => ({ ...(await world.box(host)), token: newSecret() })],
  [
    'an expired token',
    'the token is unknown or has expired',
    async () => {
      const box = await world.box(host);
      const fresh = await world.start(box, world.clock.now() - 600_000);
      return { ...box, ...fresh };
    },
  ],
  [
    'a control token where a bootstrap token is due',
    'the token is one for control',
    async () => {
      const box = await world.box(host);
      return { ...box, token: await register(box) };
    },
  ],
  [
    'a bootstrap token where a control token is due',
    'the token is one for register',
    async () => ({ ...(await world.box(host)), method: 'whoAmI' }),
  ],
  [
    "another sandbox's bootstrap token",
    'the token is that of ',
    async () => ({ ...(await world.box(host)), token: (await world.box(host)).token }),
  ],
  [
    "another sandbox's control token",
    'the token is that of ',
    async () => ({ ...(await world.box(host)), method: 'whoAmI', token: await register(await world.box(host)) }),
  ],
  [
    'a replayed bootstrap token, of an earlier start',
    'the registration was refused: ',
    async () => {
      const box = await world.box(host);
      await register(box);
      return { ...box, credentials: (await world.start(box)).credentials };
    },
  ],
  [
    'a replay: an earlier certificate, after a later one registered',
    'the token is unknown or has expired',
    async () => {
      const box = await world.box(host);
      const twin = await world.start(box);
      await register({ ...box, ...twin });
      return box;
    },
  ],
  [
    'a certificate stolen by a second sandbox on the same host',
    'the registration was refused: peer-address-mismatch',
    async () => ({ ...(await world.box(host)), origin: (await world.box(host)).origin }),
  ],
  [
    'a certificate stolen by a sandbox on another host',
    'the registration was refused: host-mismatch',
    async () => ({ ...(await world.box(host)), origin: (await world.box(elsewhere)).origin }),
  ],
  [
    'another host that claims to have the sandbox',
    'the registration was refused: host-mismatch',
    async () => {
      const box = await world.box(host);
      return { ...box, origin: { ...box.origin, hostId: elsewhere.id } };
    },
  ],
  [
    'the right certificate with a wrong peer address',
    'the registration was refused: peer-address-mismatch',
    async () => {
      const box = await world.box(host);
      return { ...box, origin: { ...box.origin, peerAddress: '10.9.9.9' } };
    },
  ],
  [
    'names that are not those of the certificate',
    'the registration was refused: cn-mismatch',
    async () => ({ ...(await world.box(host)), names: { project: 'red', name: 'someone' } }),
  ],
  [
    'a certificate and names that are not those of the record',
    'the registration was refused: record-mismatch',
    async () => {
      const box = await world.box(host);
      const credentials = await issue(async (csrDer) => await world.ca.signSandbox(box.id, 'red.someone', csrDer));
      return { ...box, credentials, token: await world.issued(box.id, credentials), names: { project: 'red', name: 'someone' } };
    },
  ],
  [
    'several common names',
    'the registration was refused: cn-mismatch',
    async () => {
      const box = await world.box(host);
      const leaf = { commonNames: [commonName(box), 'red.other'], uris: [uri(box)], usages: [clientAuth] };
      const credentials = await world.signByHand(leaf);
      return { ...box, credentials, token: await world.issued(box.id, credentials) };
    },
  ],
  [
    'a deleted sandbox',
    'the registration was refused: unknown-sandbox',
    async () => {
      const box = await world.box(host);
      await world.store.sandboxes.setDesired(box.id, 'deleted');
      return box;
    },
  ],
  [
    'a revoked identity',
    'the registration was refused: revoked',
    async () => {
      const box = await world.box(host);
      await register(box);
      await world.registry.revoke(box.id);
      return { ...box, ...(await world.start(box)) };
    },
  ],
  [
    'an evicted identity',
    'the token is unknown or has expired',
    async () => {
      const box = await world.box(host);
      const token = await register(box);
      await world.registry.evict(box.id, 'evicted');
      return { ...box, method: 'whoAmI', token };
    },
  ],
  [
    'a certificate that never registered, with the token of one that did',
    'the registry does not know the certificate',
    async () => {
      const box = await world.box(host);
      const token = await register(box);
      return { ...box, ...(await world.start(box)), method: 'whoAmI', token };
    },
  ],
  [
    'a registered certificate and its token, both stolen by another sandbox',
    'the connection came from the network of ',
    async () => {
      const box = await world.box(host);
      return { ...box, method: 'whoAmI', token: await register(box), origin: (await world.box(host)).origin };
    },
  ],
  [
    'a registered certificate and its token, both stolen and carried to another host, which claims to have the sandbox',
    'the connection came through another host than its own',
    async () => {
      const box = await world.box(host);
      return { ...box, method: 'whoAmI', token: await register(box), origin: { ...box.origin, hostId: elsewhere.id } };
    },
  ],
  [
    "a host's certificate",
    'the certificate is not that of a sandbox',
    async () => ({ ...(await world.box(host)), credentials: await issue(async (csrDer) => await world.ca.signHost(host.id, csrDer)) }),
  ],
  [
    "the control plane's own certificate",
    'the certificate is not that of a sandbox',
    async () => ({ ...(await world.box(host)), credentials: await world.ca.issueControlPlane({ dnsNames: [], ipAddresses: [] }) }),
  ],
  [
    'two URI names',
    'the certificate is not that of a sandbox',
    async () => {
      const [box, other] = [await world.box(host), await world.box(host)];
      const leaf = { commonNames: [commonName(box)], uris: [uri(box), uri(other)], usages: [clientAuth] };
      return { ...box, credentials: await world.signByHand(leaf) };
    },
  ],
  [
    'a name in another trust domain',
    'the certificate is not that of a sandbox',
    async () => {
      const box = await world.box(host);
      const leaf = { commonNames: [commonName(box)], uris: [`spiffe://elsewhere/sandbox/${box.id}`], usages: [clientAuth] };
      return { ...box, credentials: await world.signByHand(leaf) };
    },
  ],
  [
    'a certificate that names no use',
    'the certificate is not that of a sandbox',
    async () => {
      const box = await world.box(host);
      return { ...box, credentials: await world.signByHand({ commonNames: [commonName(box)], uris: [uri(box)] }) };
    },
  ],
];

interface Answers {
  readonly http1: string;
  readonly connect: Http2Answer;
  readonly grpc: Http2Answer;
}

/** The responses to the attempt in each protocol, each on its own connection: every byte, or everything that HTTP/2 carries. */
async function answersTo(attempt: Attempt): Promise<Answers> {
  const { method = 'register', token = '', origin, credentials } = attempt;
  const names = attempt.names ?? (attempt as Attempt & { readonly project: string; readonly name: string });
  const given = token === '' ? {} : { token };
  const overHttp2 = async (call: typeof connectCall): Promise<Http2Answer> => {
    const session = http2(await world.connect(origin, { credentials, ALPNProtocols: ['h2'] }));
    try {
      return await call(session, method, registerBytes(names), given.token);
    } finally {
      session.destroy();
    }
  };
  const overHttp1 = async (): Promise<string> =>
    (await http1(await world.connect(origin, { credentials }), method, { ...given, body: registerJson(names) })).raw;
  const [raw, connect, grpc] = await Promise.all([overHttp1(), overHttp2(connectCall), overHttp2(grpcCall)]);
  return { http1: raw, connect, grpc };
}

describe('I-16: every rejection of an identity is the same on the wire; only the log has the reason', () => {
  /** The reference responses, to which all others must be equal. */
  let first: Promise<Answers>;
  /** By name of the attempt. They run concurrently, since each response is delayed. */
  const attempts = new Map<string, Promise<{ readonly answers: Answers; readonly logged: readonly unknown[] }>>();
  beforeAll(() => {
    first = (async () => await answersTo({ ...(await world.box(host)), token: '' }))();
    for (const [what, , prepare] of cases) {
      const attempted = (async () => {
        const attempt = await prepare();
        return { answers: await answersTo(attempt), logged: world.refusals(attempt.origin) };
      })();
      // The test of this attempt reports the error.
      attempted.catch(() => undefined);
      attempts.set(what, attempted);
    }
  });

  it('is PERMISSION_DENIED with one message and its code, and nothing else', async () => {
    const answers = await first;
    const refusal = { code: 'permission-denied', message: 'the identity was not accepted' };
    const error = create(link.ErrorSchema, refusal);
    const detail = { type: 'drover.link.v1.Error', debug: refusal, value: unpadded(toBinary(link.ErrorSchema, error)) };
    const body = JSON.stringify({ code: 'permission_denied', message: refusal.message, details: [detail] });
    // google.rpc.Status: code, message, details.
    const status = concat(
      [0x08, 7, 0x12, refusal.message.length],
      Buffer.from(refusal.message),
      lengthPrefixed(0x1a, toBinary(AnySchema, anyPack(link.ErrorSchema, error))),
    );
    expect(answers.http1).toBe(
      `HTTP/1.1 403 Forbidden\r\ncontent-length: ${body.length}\r\ncontent-type: application/json\r\nConnection: close\r\n\r\n${body}`,
    );
    expect(answers.connect).toEqual({
      headers: [':status', '403', 'content-length', String(body.length), 'content-type', 'application/json'],
      trailers: [],
      body: Buffer.from(body),
      resetCode: 0,
    });
    expect(answers.grpc).toEqual({
      headers: [':status', '200', 'content-type', 'application/grpc+proto'],
      trailers: ['grpc-message', encodeURIComponent(refusal.message), 'grpc-status', '7', 'grpc-status-details-bin', unpadded(status)],
      body: Buffer.alloc(0),
      resetCode: 0,
    });
  });

  it.each(cases)('%s', async (what, why) => {
    const attempted = await attempts.get(what);
    expect(attempted?.answers).toEqual(await first);
    expect(attempted?.logged).toHaveLength(3);
    for (const said of attempted?.logged ?? []) expect(said).toMatch(new RegExp(`^${why}`));
  });

  it('takes the same time for every check', async () => {
    const clock = new FakeClock(Date.now());
    await using slow = await World.open({ clock });
    const at = await slow.host();
    const [unknown, elsewhere] = [await slow.box(at), await slow.box(at)];
    const attempts = [
      { ...unknown, token: newSecret() },
      { ...elsewhere, origin: { ...elsewhere.origin, peerAddress: '10.9.9.9' } },
    ];
    const sockets = await Promise.all(attempts.map(async (attempt) => await slow.as(attempt)));
    const answeredAt: number[] = [];
    const started = clock.now();
    const answers = attempts.map(async (attempt, index) => {
      const answer = await http1(sockets[index] as TLSSocket, 'register', { token: attempt.token, body: registerJson(attempt) });
      answeredAt.push(clock.now() - started);
      return answer.status;
    });
    // The first is decided immediately; the second waits for the address that its host may still report.
    await expect.poll(() => slow.refusals(unknown.origin)).toHaveLength(1);
    await expect.poll(() => clock.sleeping).toBeGreaterThan(3);
    while (answeredAt.length < 2 && clock.now() - started < 20_000) {
      await clock.advance(50);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(await Promise.all(answers)).toEqual([403, 403]);
    expect(Math.max(...answeredAt) - Math.min(...answeredAt)).toBeLessThanOrEqual(50);
  });
});

describe('an error that is not a rejection of an identity', () => {
  it('I-16: is INVALID_ARGUMENT for a malformed request', async () => {
    const box = await world.box(host);
    for (const body of ['{', '{"name":7}', registerJson({ project: 'red', name: 'No Name' }), registerJson({ project: '.', name: 'a' })]) {
      const answer = await http1(await world.as(box), 'register', { token: box.token, body });
      expect(answer).toMatchObject({ status: 400, body: expect.stringContaining('"invalid_argument"') });
    }
    const session = http2(await world.as(box, 'h2'));
    const answer = await grpcCall(session, 'register', registerBytes({ project: 'red', name: '' }), box.token);
    expect(answer.trailers).toContain('3');
    session.destroy();
  });
});

describe('the reason of a refused Register, for the dialer', () => {
  const refusalOf = ({ id, credentials }: Pick<Box, 'id' | 'credentials'>): unknown =>
    world.listener.lastRefusal(id, credentials.thumbprint);

  /** Makes a Register that is refused, without waiting for the delayed response. */
  async function refuse(box: Box): Promise<void> {
    const before = world.refusals(box.origin).length;
    const socket = await world.as(box);
    void http1(socket, 'register', { token: box.token, body: registerJson(box) });
    await expect.poll(() => world.refusals(box.origin), { timeout: 10_000 }).toHaveLength(before + 1);
    socket.destroy();
  }

  it('is known for a sandbox that was refused through its own host, until it registers', async () => {
    const box = await world.box(host);
    expect(refusalOf(box)).toBeUndefined();
    await refuse({ ...box, origin: { ...box.origin, peerAddress: '10.9.9.9' } });
    expect(refusalOf(box)).toBe('peer-address-mismatch');
    expect(world.recorded.get(box.id)).toContainEqual(
      expect.objectContaining({ check: 'peer-address', verdict: 'fail', source: 'register' }),
    );
    await refuse({ ...box, token: newSecret() });
    expect(refusalOf(box)).toBe('token');
    await register(box);
    expect(refusalOf(box)).toBeUndefined();
    expect(world.recorded.get(box.id)).toContainEqual(
      expect.objectContaining({ check: 'peer-address', verdict: 'pass', source: 'register' }),
    );
  });

  it('is not known for the certificate of another start', async () => {
    const box = await world.box(host);
    await refuse({ ...box, token: newSecret() });
    expect(refusalOf(box)).toBe('token');
    expect(refusalOf({ ...box, ...(await world.start(box)) })).toBeUndefined();
  });

  it('is not known for a sandbox whose key was used on another host', async () => {
    const box = await world.box(host);
    await refuse({ ...box, origin: (await world.box(elsewhere)).origin });
    await refuse({ ...box, origin: { ...box.origin, hostId: elsewhere.id } });
    expect(refusalOf(box)).toBeUndefined();
    expect(world.recorded.has(box.id)).toBe(false);
  });
});
