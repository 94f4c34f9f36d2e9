import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { ExitRecord, MainProcess } from '../config.ts';
import { parseLogLine } from '../logs/reader.ts';
import { createTestAuthority, startInit, type StartOptions, type TestAuthority, type TestClient, type TestInit } from '../testing/index.ts';

let test: TestAuthority;
let box: TestInit | undefined;

beforeAll(async () => {
  test = await createTestAuthority();
});
afterAll(async () => await test.close());
afterEach(async () => {
  await box?.close();
  box = undefined;
});

const pidNamespace = ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child'];

/** Starts init as a real PID 1, its session, and the main process. */
async function run(
  main: Partial<MainProcess>,
  options: StartOptions = {},
): Promise<{ box: TestInit; client: TestClient; session: Session }> {
  box = await startInit(test, { launcher: pidNamespace, ...options, main });
  const client = await box.client();
  const session = new Session(client);
  return { box, client, session };
}

/** The pid that init has outside. */
function initPid(of: TestInit): number {
  return Number(readFileSync(`/proc/${of.pid}/task/${of.pid}/children`, 'utf8').trim());
}

class Session {
  readonly started: Promise<init.SessionResponse>;
  readonly mainExited: Promise<init.ExitStatus | undefined>;

  constructor(client: TestClient) {
    const started = Promise.withResolvers<init.SessionResponse>();
    const exited = Promise.withResolvers<init.ExitStatus | undefined>();
    this.started = started.promise;
    this.mainExited = exited.promise;
    const over = new AbortController();
    void (async () => {
      try {
        for await (const response of client.init.session(requests(over.signal))) {
          if (response.id === 2n) started.resolve(response);
          if (response.payload.case === 'mainExited') exited.resolve(response.payload.value.exit);
        }
      } catch {
        // The connection ends with init.
      }
      over.abort();
      exited.resolve(undefined);
    })();
  }
}

async function* requests(over: AbortSignal): AsyncGenerator<init.SessionRequest> {
  yield create(init.SessionRequestSchema, { id: 1n, payload: { case: 'hello', value: {} } });
  yield create(init.SessionRequestSchema, { id: 2n, payload: { case: 'agentReady', value: {} } });
  // I-32: a second one starts nothing.
  yield create(init.SessionRequestSchema, { id: 3n, payload: { case: 'agentReady', value: {} } });
  await new Promise<void>((resolve) => over.addEventListener('abort', () => resolve(), { once: true }));
}

function exitRecord(of: TestInit): ExitRecord {
  return JSON.parse(readFileSync(join(of.runDirectory, 'exit.json'), 'utf8')) as ExitRecord;
}

function logged(of: TestInit): string {
  return readFileSync(join(of.runDirectory, 'log'), 'utf8')
    .split('\n')
    .map((line) => parseLogLine(line)?.data.toString() ?? '')
    .join('');
}

describe('the gate of a start', () => {
  it('init does nothing before the host has completed the run directory, and then starts as without a gate', async () => {
    const gate = Promise.withResolvers<void>();
    let listens = false;
    const started = startInit(test, { main: { argv: ['sh', '-c', 'test ! -e /proc/$$/fd/3'] }, gate: gate.promise });
    void started.then(() => (listens = true));
    // As long as it takes another one to be there.
    box = await startInit(test);
    await box.close();
    expect(listens).toBe(false);
    gate.resolve();
    // Nothing of the gate is the command's.
    box = await started;
    const session = new Session(await box.client());
    expect(await session.mainExited).toMatchObject({ code: 0 });
  });

  it('a gate that opens without a config, since the host died or gave up, ends init', async () => {
    await expect(startInit(test, { gate: Promise.reject(new Error('refused')) })).rejects.toThrow(/ended with 125: .*config\.json/s);
  });
});

describe('I-37: PID 1', () => {
  it('exits with the status of the command, and records it', async () => {
    const { box, session } = await run({ argv: ['sh', '-c', 'echo once; exit 42'] });
    expect(await session.mainExited).toMatchObject({ code: 42 });
    expect(await box.exited).toBe(42);
    expect(exitRecord(box)).toMatchObject({ code: 42, signal: '', reason: 'main-exited' });
    expect(logged(box)).toBe('once\n');
  });

  it('distinguishes a signal from a code', async () => {
    const { box } = await run({ argv: ['sh', '-c', 'kill -KILL $$'] });
    expect(await box.exited).toBe(137);
    expect(exitRecord(box)).toMatchObject({ code: 137, signal: 'SIGKILL' });
  });

  it('reaps every orphan, and no child of another process', async () => {
    // Each inner shell leaves a background child to init; the outer one waits for its own.
    // Those that have ended and were not reaped still have their name.
    const left = 'grep -l "Name:.sleep" /proc/[0-9]*/status 2>/dev/null | wc -l';
    const script = `for i in $(seq 1 50); do (sh -c "sleep 0.1 & exit 0"); done; until [ $(${left}) = 0 ]; do sleep 0.05; done; exit 11`;
    const { box } = await run({ argv: ['sh', '-c', script] });
    expect(await box.exited).toBe(11);
  });

  it('SIGTERM reaches the whole process group of the command', async () => {
    const { box, session } = await run({ argv: ['sh', '-c', 'trap "echo stopping; exit 7" TERM; sleep 1000 & echo up; wait'] });
    await session.started;
    await expect.poll(() => logged(box)).toBe('up\n');
    process.kill(initPid(box), 'SIGTERM');
    expect(await box.exited).toBe(7);
    expect(logged(box)).toBe('up\nstopping\n');
    expect(exitRecord(box)).toMatchObject({ code: 7, reason: 'stopped' });
  });

  it('a command that ignores SIGTERM is killed after the grace', async () => {
    const { box, session } = await run({ argv: ['sh', '-c', 'trap "" TERM; echo up; while :; do sleep 0.05; done'] }, { stopGraceMs: 200 });
    await session.started;
    await expect.poll(() => logged(box)).toBe('up\n');
    process.kill(initPid(box), 'SIGTERM');
    expect(await box.exited).toBe(137);
  });

  it('the command runs on without the control plane', async () => {
    const { box, client, session } = await run({ argv: ['sh', '-c', 'sleep 0.4; echo alone; exit 3'] });
    await session.started;
    client.socket.destroy();
    expect(await box.exited).toBe(3);
    expect(logged(box)).toBe('alone\n');
  });

  it('a command that cannot be started ends the sandbox with the reason', async () => {
    const { box, session } = await run({ argv: ['no-such-program'] });
    expect((await session.started).error).toMatchObject({ code: 'command-not-found' });
    expect(await box.exited).toBe(127);
    expect(exitRecord(box)).toMatchObject({ code: 127, reason: 'start-failed', message: expect.stringContaining('no-such-program') });
  });

  it('makes the working directory of the command', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'drover-workdir-'));
    const { box } = await run({ argv: ['pwd'], workdir: join(directory, 'a/b') });
    await box.exited;
    expect(logged(box)).toBe(`${join(directory, 'a/b')}\n`);
    await rm(directory, { recursive: true });
  });
});

describe('R-20: an idle sandbox', () => {
  it('is stopped, with the reason in its exit record; while a client is attached, it is not idle', async () => {
    const { box, client } = await run({ argv: ['sleep', '1000'] }, { idleStopMs: 1_000 });
    const codes: number[] = [];
    const start = create(init.ExecRequestSchema, { payload: { case: 'start', value: { execId: 'e1', argv: ['sleep', '2.5'] } } });
    for await (const { payload } of client.init.exec(Readable.from([start]))) {
      if (payload.case === 'exit') codes.push(payload.value.code);
    }
    expect(codes).toEqual([0]);
    expect(await box.exited).toBe(143);
    expect(exitRecord(box)).toMatchObject({ code: 143, reason: 'idle' });
  });

  it('does not include one that uses CPU time', async () => {
    const { box } = await run(
      { argv: ['sh', '-c', 'end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done; exit 5'] },
      { idleStopMs: 1_000 },
    );
    expect(await box.exited).toBe(5);
    expect(exitRecord(box)).toMatchObject({ reason: 'main-exited' });
  });
});

describe('the kept log', () => {
  it('is followed from its beginning to the end of the command, and has both streams', async () => {
    const { client } = await run({ argv: ['sh', '-c', 'echo one; echo two >&2; sleep 0.3; echo three'] });
    let text = '';
    let stderr = '';
    for await (const chunk of client.init.logs({ follow: true })) {
      text += Buffer.from(chunk.data).toString();
      if (chunk.stderr) stderr += Buffer.from(chunk.data).toString();
    }
    expect(text.split('\n').sort()).toEqual(['', 'one', 'three', 'two']);
    expect(stderr).toBe('two\n');
  });

  it('returns the last lines', async () => {
    const { client } = await run({ argv: ['sh', '-c', 'seq 1 5000; sleep 1000'] });
    await expect.poll(() => (box === undefined ? '' : logged(box))).toContain('\n5000\n');
    let text = '';
    for await (const chunk of client.init.logs({ tailLines: 3n })) text += Buffer.from(chunk.data).toString();
    expect(text).toBe('4998\n4999\n5000\n');
  });

  it('is not blocked by files that the workload puts in its place', async () => {
    const runDirectory = await mkdtemp(join(tmpdir(), 'drover-pipes-'));
    for (const name of ['log', 'exit.json.tmp']) execFileSync('mkfifo', [join(runDirectory, name)]);
    try {
      const said = join(runDirectory, 'said');
      const { box } = await run({ argv: ['sh', '-c', `echo said; : > ${said}; read -r line; exit 6`], stdin: true }, { runDirectory });
      await expect.poll(() => existsSync(said)).toBe(true);
      process.kill(initPid(box), 'SIGTERM');
      expect(await box.exited).toBe(143);
      expect(exitRecord(box)).toMatchObject({ code: 143, reason: 'stopped' });
    } finally {
      await box?.close();
      box = undefined;
      await rm(runDirectory, { recursive: true });
    }
  });

  it('a full disk costs records, not the workload', async () => {
    const runDirectory = await mkdtemp(join(tmpdir(), 'drover-full-'));
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', runDirectory]);
    try {
      const { box } = await run({ argv: ['sh', '-c', 'head -c 3000000 /dev/zero; echo done >&2; exit 6'] }, { runDirectory });
      expect(await box.exited).toBe(6);
    } finally {
      await box?.close();
      box = undefined;
      execFileSync('umount', [runDirectory]);
      await rm(runDirectory, { recursive: true });
    }
  });
});
