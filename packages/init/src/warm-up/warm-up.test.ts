import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { X509Certificate } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { parseLogLine } from '../logs/reader.ts';
import { connectTls, createTestAuthority, startInit, TestSession, type TestAuthority, type TestInit } from '../testing/index.ts';
import { warmUpIdentity, warmUpUri } from './identity.ts';

const run = promisify(execFile);

let test: TestAuthority;
let box: TestInit | undefined;
let directory: string;

beforeAll(async () => {
  test = await createTestAuthority();
});
afterAll(async () => await test.close());
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-standby-'));
});
afterEach(async () => {
  await box?.close();
  box = undefined;
  await rm(directory, { recursive: true });
});

const pidNamespace = ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child'];

function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
}

/** What its descriptors are of, without the numbers of sockets and pipes. */
function descriptorsOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`)
    .map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`).replace(/\d+/, ''))
    .sort();
}

function logged(of: TestInit): string {
  return readFileSync(join(of.runDirectory, 'log'), 'utf8')
    .split('\n')
    .map((line) => parseLogLine(line)?.data.toString() ?? '')
    .join('');
}

describe('a standby', () => {
  it('has nothing left of its warm-up run when it reports that it is ready, and then serves a session', async () => {
    let seen: { fds: string[]; children: number[]; files: string[] } | undefined;
    box = await startInit(test, {
      main: { argv: ['sh', '-c', 'env; ls /proc/$$/fd; exit 7'] },
      standby: async ({ pid, runDirectory }) => {
        // It is closed a moment after it can be seen.
        await expect.poll(() => descriptorsOf(pid).some((name) => name.endsWith('/standby'))).toBe(false);
        seen = { fds: descriptorsOf(pid), children: childrenOf(pid), files: readdirSync(runDirectory) };
        await rm(join(runDirectory, 'standby'));
      },
    });
    expect(seen).toMatchObject({ children: [], files: ['standby'] });
    // Beside libuv's own: the standard streams and the gate.
    const open = seen?.fds.filter((name) => !/^(?:anon_inode|pipe):/.test(name));
    expect(open).toEqual(['/dev/null', '/dev/null', 'socket:[]', 'socket:[]', 'socket:[]']);
    const session = new TestSession(await box.client());
    expect(await session.ask({ case: 'hello', value: {} })).toMatchObject({ case: 'helloAck', value: { sandboxId: box.config.sandboxId } });
    await session.ask({ case: 'agentReady', value: {} });
    expect(await box.exited).toBe(7);
    expect(logged(box)).not.toMatch(/rehears|warm|standby|gate/i);
    expect(box.stderr()).toBe('');
    expect(readdirSync(box.runDirectory)).not.toContain('warm-up');
  });

  it('a warm-up run leaves no timer, handle or descriptor', async () => {
    const child = join(import.meta.dirname, 'testing', 'resources-child.ts');
    const flags = ['--conditions=development', '--disable-warning=ExperimentalWarning', '--expose-gc'];
    const { stdout } = await run(process.execPath, [...flags, child, directory]);
    const { made, resources, descriptors } = JSON.parse(stdout) as Record<string, string[]>;
    // It was a whole one.
    expect(made).toEqual(expect.arrayContaining(['Timeout', 'PIPEWRAP', 'TLSWRAP', 'HTTP2STREAM', 'HTTPCLIENTREQUEST', 'PROCESSWRAP']));
    expect({ resources, descriptors, files: readdirSync(directory) }).toEqual({ resources: [], descriptors: [], files: [] });
  });

  it('reads the sandbox as it is when the gate opens, not as it was before', async () => {
    const passwd = join(directory, 'passwd');
    await writeFile(passwd, 'newcomer:x:4711:4712::/home/newcomer:/bin/sh\n');
    box = await startInit(test, {
      launcher: pidNamespace,
      main: { argv: ['sh', '-c', 'echo "$(id -u):$(id -g) $HOME $(ls /mnt)"'], user: 'newcomer', workdir: '/mnt' },
      standby: async ({ pid }) => {
        const [init] = childrenOf(pid);
        const enter = ['--mount', '--target', String(init)];
        await run('nsenter', [...enter, 'mount', '--bind', passwd, '/etc/passwd']);
        await run('nsenter', [...enter, 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']);
        await run('nsenter', [...enter, 'touch', '/mnt/new']);
      },
    });
    await new TestSession(await box.client()).ask({ case: 'agentReady', value: {} });
    expect(await box.exited).toBe(0);
    expect(logged(box)).toBe('4711:4712 /home/newcomer new\n');
  });

  it('without a request ends when its host has ended', async () => {
    const abandoned = startInit(test, { standby: () => Promise.reject(new Error('the host died')) });
    await expect(abandoned).rejects.toThrow(/ended with 125: .*config\.json/s);
  });

  it('whose warm-up run fails does not report that it is ready, and starts all the same', async () => {
    // A file is in the place of its directory.
    await writeFile(join(directory, 'warm-up'), '');
    const gate = Promise.withResolvers<void>();
    const starting = startInit(test, { runDirectory: directory, main: { argv: ['true'] }, standby: 'unheard', gate: gate.promise });
    gate.resolve();
    box = await starting;
    expect(existsSync(join(directory, 'standby'))).toBe(false);
    expect(box.stderr()).toContain('the warm-up run failed');
    await new TestSession(await box.client()).ask({ case: 'agentReady', value: {} });
    expect(await box.exited).toBe(0);
  });
});

describe('I-3, I-13: the identity of the warm-up run', () => {
  it('outlives no date, and is for both ends', () => {
    const certificate = new X509Certificate(warmUpIdentity.certificatePem);
    expect(certificate.checkIssued(new X509Certificate(warmUpIdentity.caPem))).toBe(true);
    expect(certificate.subjectAltName).toBe(`URI:${warmUpUri}`);
    expect(certificate.validToDate.getUTCFullYear()).toBe(9999);
  });

  it('is not trusted by the sandbox', async () => {
    box = await startInit(test, { standby: () => Promise.resolve() });
    const { certificatePem, keyPem } = warmUpIdentity;
    const socket = await connectTls(test, box.port, { cert: certificatePem, key: keyPem });
    socket.on('error', () => undefined);
    await once(socket, 'close');
    await expect.poll(() => box?.stderr()).toContain('the certificate is not accepted');
  });

  it('is not the control plane where a sandbox registers', async () => {
    const { caPem, certificatePem, keyPem } = warmUpIdentity;
    const server = createTlsServer({ ca: caPem, cert: certificatePem, key: keyPem, ALPNProtocols: ['http/1.1'] });
    server.on('tlsClientError', () => undefined);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const { port } = server.address() as AddressInfo;
      box = await startInit(test, { control: { host: '127.0.0.1', port }, token: 'bootstrap', standby: () => Promise.resolve() });
      const session = new TestSession(await box.client());
      const registered = session.ask({ case: 'registerRequired', value: {} });
      await expect(registered).rejects.toMatchObject({ code: 'ca-mismatch' });
    } finally {
      server.close();
    }
  });
});
