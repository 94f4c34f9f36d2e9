import { randomBytes, X509Certificate } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { chmod, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { initPort } from '@drover/init';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, HostNetwork, isAlive, SecondHost, TestDrover, tool, tracesOf } from './harness/index.ts';

/** The files of the run directory of one start. Init reads them and deletes the secret ones. */
interface Stolen {
  readonly id: string;
  /** The name of a directory in /loot, which the attackers mount. */
  readonly directory: string;
  readonly token: string;
  readonly control: { readonly host: string; readonly port: number };
  readonly name: string;
}

/** An attempt of the attacker: the argument of its program. */
interface Attempt {
  readonly host: string;
  readonly port: number;
  /** The name of a file in /loot; absent for no client certificate. */
  readonly cert?: string;
  readonly key?: string;
  readonly maxTls?: '1.2';
  readonly alpn?: string;
  readonly send: string;
}

interface Outcome {
  /** The last stage reached: `tcp` before TLS, `handshake` during it, `open` after the client has finished it. */
  readonly stage: 'tcp' | 'handshake' | 'open';
  /** The name of the error; OpenSSL's reason for a TLS error. */
  readonly error: string;
  /** Every byte received after the handshake, in hex. */
  readonly answer: string;
}

/**
 * The attacker's TLS client, which shares no code with Drover. In TLS 1.3 a client finishes its handshake before the server has checked its
 * certificate, so a refusal is a connection that ends without a byte.
 */
const client = `
import json, socket, ssl, sys
a = json.load(sys.stdin)
ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ctx.check_hostname = False
ctx.verify_mode = ssl.CERT_NONE
if "maxTls" in a: ctx.maximum_version = ssl.TLSVersion.TLSv1_2
if "alpn" in a: ctx.set_alpn_protocols([a["alpn"]])
if "cert" in a: ctx.load_cert_chain("/loot/" + a["cert"], "/loot/" + a["key"])
got = b""
stage = "tcp"
error = ""
try:
    raw = socket.create_connection((a["host"], a["port"]), timeout=8)
    stage = "handshake"
    s = ctx.wrap_socket(raw)
    stage = "open"
    s.sendall(a["send"].encode())
    while True:
        data = s.recv(65536)
        if not data: break
        got += data
except ssl.SSLError as e:
    error = str(e.reason)
except OSError as e:
    error = type(e).__name__
print(json.dumps({"stage": stage, "error": error, "answer": got.hex()}))
`;

let drover: TestDrover;
let network: HostNetwork;
let second: SecondHost;
let loot: string;

const method = '/drover.control.v1.ControlService/Register';

/** Returns a Register request of Connect over HTTP/1.1. The connection closes after the response. */
function register(token: string | undefined, claim: unknown): string {
  const body = typeof claim === 'string' ? claim : JSON.stringify(claim);
  const bearer = token === undefined ? '' : `authorization: Bearer ${token}\r\n`;
  return `POST ${method} HTTP/1.1\r\nhost: control-plane\r\ncontent-type: application/json\r\nconnect-protocol-version: 1\r\n${bearer}content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`;
}

/**
 * Runs the attacker's client in a sandbox. A host resets connections above its rate limit before their handshake. Such an attempt has no
 * outcome and is repeated.
 */
async function attack(from: string, attempt: Attempt): Promise<Outcome> {
  return await eventually('the attack reaches TLS', async () => {
    const outcome = await tryAttack(from, attempt);
    return (attempt.port === initPort || outcome.stage === 'open' || /TLS/.test(outcome.error)) && outcome;
  });
}

async function tryAttack(from: string, attempt: Attempt): Promise<Outcome> {
  const { code, stdout, stderr } = await drover.exec(from, ['/usr/bin/python3', '-c', client], { input: JSON.stringify(attempt) });
  if (code !== 0) throw new Error(`the attack could not be made: ${stderr}`);
  return JSON.parse(stdout) as Outcome;
}

interface Theft extends Stolen {
  release(): Promise<void>;
}

/**
 * Starts a sandbox and copies the files of its run directory before init reads them, as root of a host can by stopping init (SIGSTOP).
 * With `hold`, init stays stopped until `release` and does not register. Recreates the sandbox when the copy came too late.
 */
async function startAndSteal(name: string, state: string, args: readonly string[], hold = false): Promise<Theft> {
  for (let tries = 1; ; tries++) {
    const theft = await trySteal(name, state, args, hold);
    if (theft !== undefined) return theft;
    if (tries === 10) throw new Error(`init deleted the files of ${name} before they were copied, ${tries} times`);
    await drover.remove(name);
  }
}

async function trySteal(name: string, state: string, args: readonly string[], hold: boolean): Promise<Theft | undefined> {
  const run = join(state, 'run');
  await mkdir(run, { recursive: true });
  const before = new Set(await readdir(run));
  const directory = `stolen-${name}`;
  await mkdir(join(loot, directory), { recursive: true });
  const wanted = ['cert.pem', 'key.pem', 'ca.pem', 'token', 'config.json'];
  let made: Awaited<ReturnType<typeof drover.run>> | undefined;
  const creating = drover
    .run(['sandbox', 'create', '--no-wait', '--name', name, ...args, 'host', 'sleep', '600'])
    .then((result) => (made = result));
  const stolen = new Map<string, Buffer>();
  const end = Date.now() + 30_000;
  let id: string | undefined;
  let pid: number | undefined;
  // Poll without a pause, because init reads its files a moment after its start.
  while (stolen.size < wanted.length || (hold && pid === undefined)) {
    // Too late: init has deleted a part of the files.
    if (made !== undefined && readIfThere(join(run, id ?? '', 'token')) === undefined) break;
    if (Date.now() > end) throw new Error(`only ${[...stolen.keys()].join()} of ${name} could be stolen`);
    id ??= readdirSync(run).find((entry) => !before.has(entry));
    if (id !== undefined) {
      for (const file of wanted) {
        const data = stolen.has(file) ? undefined : readIfThere(join(run, id, file));
        if (data !== undefined && data.length > 0) stolen.set(file, data);
      }
      if (pid === undefined) {
        const text = String(readIfThere(join(state, 'sandboxes', id, 'init.pid')) ?? '');
        if (/^\d+\s*$/.test(text)) {
          pid = Number(text);
          process.kill(pid, 'SIGSTOP');
        }
      }
    }
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
  // An init that was stopped in time has not read its token, so the file still exists.
  const inTime = stolen.size === wanted.length && (!hold || readIfThere(join(run, id ?? '', 'token')) !== undefined);
  if (pid !== undefined && !(hold && inTime)) process.kill(pid, 'SIGCONT');
  await creating;
  expect({ code: made?.code, stderr: made?.code === 0 ? '' : made?.stderr }).toEqual({ code: 0, stderr: '' });
  if (!inTime) return undefined;
  for (const [file, data] of stolen) {
    await writeFile(join(loot, directory, file), data);
    await chmod(join(loot, directory, file), 0o644);
  }
  const config = JSON.parse(String(stolen.get('config.json'))) as Pick<Stolen, 'control'>;
  return {
    id: id ?? '',
    directory,
    token: String(stolen.get('token')).trim(),
    control: config.control,
    name,
    release: async () => {
      if (pid !== undefined && isAlive(pid)) process.kill(pid, 'SIGCONT');
      await registered(name);
    },
  };
}

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    // Init has not written the file yet, or has already deleted it.
    return undefined;
  }
}

async function registered(name: string): Promise<string> {
  return await eventually(`${name} is registered`, async () => {
    const { identity } = await drover.sandbox<{ identity: { verdict: string; thumbprint: string } }>(name);
    return identity.verdict === 'trusted' && identity.thumbprint;
  });
}

const asCaller = (who: Stolen): Pick<Attempt, 'cert' | 'key'> => ({ cert: `${who.directory}/cert.pem`, key: `${who.directory}/key.pem` });

let victim: Theft;
let mallory: Theft;
let remote: Theft;
/** A sandbox whose init was stopped before it could register, so its bootstrap token is unspent. */
let held: Theft;

beforeAll(async () => {
  network = await HostNetwork.create('10.223.255');
  const address = network.controlPlaneAddress;
  const listening = ['--listen', `${address}:0`, '--public-host', address];
  drover = await TestDrover.start([...listening, '--pool', '10.222.64.0/18', '--name', 'first'], async (directory) => {
    loot = join(directory, 'loot');
    await mkdir(loot);
    await chmod(loot, 0o755);
    return ['--allow-mount', loot];
  });
  second = new SecondHost(drover, network, 'second');
  const { apiPort, linkPort } = JSON.parse(await readFile(join(drover.data, 'control-plane', 'server.json'), 'utf8')) as {
    apiPort: number;
    linkPort: number;
  };
  await network.open([apiPort, linkPort]);
  const server = /ready on (\S+)/.exec(drover.output)?.[1] ?? '';
  const { token } = await drover.json<{ token: string }>(['host', 'token']);
  expect((await second.join(server, token, ['--name', 'second', '--pool', '10.222.128.0/18'])).code).toBe(0);
  await second.start(['--allow-mount', loot]);
  await eventually('the second host is ready', async () => (await drover.host<{ state: string }>('second')).state === 'ready');

  const first = join(drover.data, 'host');
  const mountLoot = ['--volume', `${loot}:/loot:ro`];
  victim = await startAndSteal('victim', first, ['--host', 'first']);
  mallory = await startAndSteal('mallory', first, ['--host', 'first', ...mountLoot]);
  remote = await startAndSteal('remote', second.state, ['--host', 'second', ...mountLoot]);
  await Promise.all([victim, mallory, remote].map(async ({ name }) => await registered(name)));
  await forge();
  // A theft may need several tries.
}, 480_000);

afterAll(async () => {
  await drover.remove(...(await drover.sandboxes<{ id: string }>()).map(({ id }) => id));
  const left = await tracesOf(drover);
  await second[Symbol.asyncDispose]();
  await drover[Symbol.asyncDispose]();
  await network[Symbol.asyncDispose]();
  expect(await left()).toEqual([]);
});

/** Makes the attacker's certificates with the victim's names: one self-signed, one signed with the key of its own sandbox. */
async function forge(): Promise<void> {
  const uri = new X509Certificate(await readFile(join(loot, victim.directory, 'cert.pem'))).subjectAltName;
  const at = (name: string): string => join(loot, name);
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  await tool(
    'openssl',
    'req',
    '-x509',
    ...key,
    '-keyout',
    at('self.key'),
    '-out',
    at('self.crt'),
    '-days',
    '2',
    '-subj',
    '/CN=victim',
    '-addext',
    `subjectAltName=${uri}`,
  );
  await tool('openssl', 'req', '-new', ...key, '-keyout', at('forged.key'), '-out', at('forged.csr'), '-subj', '/CN=victim');
  await writeFile(at('forged.ext'), `subjectAltName=${uri}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth,serverAuth\n`);
  const signer = ['-CA', join(loot, mallory.directory, 'cert.pem'), '-CAkey', join(loot, mallory.directory, 'key.pem'), '-CAcreateserial'];
  await tool(
    'openssl',
    'x509',
    '-req',
    '-in',
    at('forged.csr'),
    ...signer,
    '-out',
    at('forged.leaf'),
    '-days',
    '2',
    '-extfile',
    at('forged.ext'),
  );
  // The file holds the whole chain, which a careless server would accept.
  await writeFile(
    at('forged.crt'),
    (await readFile(at('forged.leaf'), 'utf8')) + (await readFile(join(loot, mallory.directory, 'cert.pem'), 'utf8')),
  );
  for (const name of ['self.key', 'self.crt', 'forged.key', 'forged.crt']) await chmod(at(name), 0o644);
}

describe('the attack works, so the refusals below have the tested cause', () => {
  test('I-15: a sandbox registers again with its own certificate, token and name, from its own address', async () => {
    const { stage, answer } = await attack('mallory', {
      ...mallory.control,
      ...asCaller(mallory),
      send: register(mallory.token, { name: 'mallory' }),
    });
    const text = Buffer.from(answer, 'hex').toString();
    expect({ stage, status: text.split('\r\n')[0] }).toEqual({ stage: 'open', status: 'HTTP/1.1 200 OK' });
    expect(text).toMatch(/"accessToken":"/);
  });

  test.each(['{"name":3', { name: '../../etc' }])('I-16: a malformed request is refused as malformed: %j', async (claim) => {
    const { answer } = await attack('mallory', { ...mallory.control, ...asCaller(mallory), send: register(mallory.token, claim) });
    expect(Buffer.from(answer, 'hex').toString()).toMatch(/invalid_argument/);
  });
});

describe('I-14 to I-16: registering as another sandbox', () => {
  /** The refusals by attempt. All must be the same bytes. */
  const refusals = new Map<string, string>();

  type Row = readonly [what: string, from: () => string, attempt: () => Omit<Attempt, 'host' | 'port'>];
  const attemptsOfUnspent: readonly Row[] = [
    [
      'a right certificate with its unspent token, from the wrong address',
      () => 'mallory',
      () => ({ ...asCaller(held), send: register(held.token, { name: 'held' }) }),
    ],
    [
      'a right certificate with its unspent token, from the wrong host',
      () => 'remote',
      () => ({ ...asCaller(held), send: register(held.token, { name: 'held' }) }),
    ],
    [
      "its own certificate with another's unspent token",
      () => 'mallory',
      () => ({ ...asCaller(mallory), send: register(held.token, { name: 'mallory' }) }),
    ],
  ];
  const attempts: readonly Row[] = [
    [
      'the certificate of a sandbox of the same host, from another address',
      () => 'mallory',
      () => ({ ...asCaller(victim), send: register(victim.token, { name: 'victim' }) }),
    ],
    [
      'the certificate of a sandbox of the first host, from the second',
      () => 'remote',
      () => ({ ...asCaller(victim), send: register(victim.token, { name: 'victim' }) }),
    ],
    [
      'the certificate of a sandbox of the second host, from the first',
      () => 'mallory',
      () => ({ ...asCaller(remote), send: register(remote.token, { name: 'remote' }) }),
    ],
    [
      "its own certificate with another's spent token",
      () => 'mallory',
      () => ({ ...asCaller(mallory), send: register(victim.token, { name: 'mallory' }) }),
    ],
    [
      "its own certificate and token with another's name",
      () => 'mallory',
      () => ({ ...asCaller(mallory), send: register(mallory.token, { name: 'victim' }) }),
    ],
    [
      'its own certificate and token with a project',
      () => 'mallory',
      () => ({ ...asCaller(mallory), send: register(mallory.token, { project: 'lab', name: 'mallory' }) }),
    ],
    ['no token', () => 'mallory', () => ({ ...asCaller(mallory), send: register(undefined, { name: 'mallory' }) })],
    [
      'another method with the bootstrap token',
      () => 'mallory',
      () => ({ ...asCaller(mallory), send: register(mallory.token, {}).replace(method, '/drover.control.v1.ControlService/WhoAmI') }),
    ],
    [
      'a random token',
      () => 'mallory',
      () => ({ ...asCaller(mallory), send: register(randomBytes(32).toString('base64url'), { name: 'mallory' }) }),
    ],
  ];

  const isRefused = async (...[what, from, attempt]: Row): Promise<void> => {
    const { host, port } = from() === 'remote' ? remote.control : mallory.control;
    const { answer } = await attack(from(), { host, port, ...attempt() });
    const text = Buffer.from(answer, 'hex').toString();
    expect(text).toMatch(/permission_denied/);
    refusals.set(what, answer);
  };

  // The start of a sandbox fails when its init is stopped for a minute, so its attempts come first.
  beforeAll(async () => {
    held = await startAndSteal('held', join(drover.data, 'host'), ['--host', 'first'], true);
  }, 240_000);

  test.each(attemptsOfUnspent)('%s: refused', isRefused);

  test('I-17: after the refusals the sandbox with the stolen unspent token registers with it', async () => {
    await held.release();
    const thumbprint = new X509Certificate(await readFile(join(loot, held.directory, 'cert.pem'))).fingerprint256
      .replaceAll(':', '')
      .toLowerCase();
    expect(await registered('held')).toBe(thumbprint);
  });

  test.each(attempts)('%s: refused', isRefused);

  test('I-16: all refusals are the same bytes', () => {
    expect(refusals.size).toBe(attemptsOfUnspent.length + attempts.length);
    expect([...new Set(refusals.values())]).toHaveLength(1);
    const text = Buffer.from([...refusals.values()][0] ?? '', 'hex').toString();
    for (const word of ['token', 'address', 'host mismatch', 'thumbprint', 'replay']) expect(text.toLowerCase()).not.toContain(word);
  });

  test('only the log reports which check failed', async () => {
    const log = await drover.log();
    for (const why of ['peer-address-mismatch', 'host-mismatch', 'token']) expect(log).toContain(why);
  });

  test.each<readonly [string, () => Omit<Attempt, 'host' | 'port' | 'send'>]>([
    ['no certificate', () => ({})],
    ['a self-signed certificate with the right names', () => ({ cert: 'self.crt', key: 'self.key' })],
    ["a certificate signed with its own sandbox's key", () => ({ cert: 'forged.crt', key: 'forged.key' })],
    ['TLS 1.2', () => ({ ...asCaller(mallory), maxTls: '1.2' })],
  ])('I-18: %s: ends in TLS, without a byte', async (_, how) => {
    const { stage, error, answer } = await attack('mallory', {
      ...mallory.control,
      ...how(),
      send: register(mallory.token, { name: 'mallory' }),
    });
    expect(answer).toBe('');
    // A TLS 1.3 client finishes its handshake before the server has checked its certificate.
    if (stage === 'handshake') expect(error).toMatch(/PROTOCOL_VERSION/);
  });

  test('I-7: every sandbox is registered once, under its own thumbprint', async () => {
    const rows = await drover.json<{ sandboxId: string; thumbprint: string }[]>(['identity', 'ls']);
    const expected = await Promise.all(
      [victim, mallory, remote, held].map(async ({ id, directory }) => ({
        sandboxId: id,
        thumbprint: new X509Certificate(await readFile(join(loot, directory, 'cert.pem'))).fingerprint256.replaceAll(':', '').toLowerCase(),
      })),
    );
    const byId = (a: { sandboxId: string }, b: { sandboxId: string }): number => a.sandboxId.localeCompare(b.sandboxId);
    expect(rows.map(({ sandboxId, thumbprint }) => ({ sandboxId, thumbprint })).toSorted(byId)).toEqual(expected.toSorted(byId));
  });
});

describe('I-3: access to an init', () => {
  const hello = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n';

  test("another sandbox's init is unreachable", async () => {
    const { address } = await drover.sandbox<{ address: string }>('victim');
    const outcome = await attack('mallory', { host: address, port: initPort, ...asCaller(mallory), alpn: 'h2', send: hello });
    expect(outcome).toMatchObject({ stage: 'tcp', answer: '' });
  });

  test.each<readonly [string, () => Omit<Attempt, 'host' | 'port' | 'send'>]>([
    ['no certificate', () => ({})],
    ['its own certificate', () => asCaller(mallory)],
    ["another sandbox's certificate", () => asCaller(victim)],
    ['a self-signed certificate', () => ({ cert: 'self.crt', key: 'self.key' })],
    ['TLS 1.2', () => ({ ...asCaller(mallory), maxTls: '1.2' })],
  ])('its own init is reached by the host alone: %s', async (_, how) => {
    const { address } = await drover.sandbox<{ address: string }>('mallory');
    const { stage, answer } = await attack('mallory', { host: address, port: initPort, alpn: 'h2', ...how(), send: hello });
    // The connection ends before the client can present a certificate.
    expect({ stage, answer }).toEqual({ stage: 'tcp', answer: '' });
  });

  test('I-6: the workload cannot read key, certificate and token, and init has deleted the key and the token', async () => {
    const { stdout } = await drover.exec('mallory', ['ls', '-l', '/.drover/run'], { user: 'nobody' });
    expect(stdout).toBe('');
    const names = (await drover.exec('mallory', ['ls', '/.drover/run'])).stdout.split('\n');
    expect(names).toContain('cert.pem');
    expect(names).not.toContain('key.pem');
    expect(names).not.toContain('token');
  });
});
