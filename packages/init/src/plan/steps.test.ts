import { readFileSync } from 'node:fs';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, afterAll, beforeEach, describe, expect, it } from 'vitest';
import { maxRunningSteps, maxSessionRequests } from '../limits.ts';
import { createTestAuthority, startInit, TestSession, type TestAuthority, type TestClient, type TestInit } from '../testing/index.ts';

let test: TestAuthority;
let box: TestInit;
let client: TestClient;
let session: TestSession;
let directory: string;

beforeAll(async () => {
  test = await createTestAuthority();
});
afterAll(async () => await test.close());
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-steps-'));
  box = await startInit(test, { main: { env: ['FROM_MAIN=1'], workdir: directory } });
  client = await box.client();
  session = new TestSession(client);
});
afterEach(async () => {
  session.cut();
  await box.close();
  await rm(directory, { recursive: true, force: true });
});

const hello = async (of = session): Promise<readonly string[]> => {
  const answer = await of.ask({ case: 'hello', value: {} });
  return answer.case === 'helloAck' ? answer.value.stepsDone : [String(answer.case)];
};

/** A session that begins when this one has broken. */
async function nextSession(): Promise<TestSession> {
  session.cut();
  client = await box.client();
  session = new TestSession(client);
  return session;
}

describe('I-29: a step', () => {
  it('runs as the main process would, with its whole stdin, and its output and exit are sent', async () => {
    const script = 'cat; echo " $FROM_MAIN $MINE $PWD $(id -u)"; echo problem >&2; exit 3';
    const end = await session.step({ name: 'a', argv: ['sh', '-c', script], env: ['MINE=2'], stdin: Buffer.from('all of it') });
    expect(end).toEqual({
      joined: false,
      code: 3,
      signal: '',
      timedOut: false,
      stdout: `all of it 1 2 ${directory} 0\n`,
      stderr: 'problem\n',
    });
  });

  it('runs as the user and in the directory that it names', async () => {
    const end = await session.step({ name: 'a', argv: ['sh', '-c', 'echo $(id -u):$(id -g) $PWD'], user: '1234:77', workdir: '/usr' });
    expect(end).toMatchObject({ code: 0, stdout: '1234:77 /usr\n' });
  });

  it('is killed with its process group when it exceeds its time limit', async () => {
    const end = await session.step({
      name: 'a',
      argv: ['sh', '-c', 'echo begun; sleep 1000 | sleep 1001; echo not reached'],
      timeoutMs: 300,
    });
    expect(end).toMatchObject({ code: 137, signal: 'SIGKILL', timedOut: true, stdout: 'begun\n' });
  });

  it('that leaves a background process holding its output ends all the same', async () => {
    const step = await session.startStep({ name: 'a', argv: ['sh', '-c', 'sleep 1000 & echo $!; exit 4'] });
    expect(await step.end()).toMatchObject({ code: 4, timedOut: false });
    const pid = Number(step.stdout);
    expect(pid).toBeGreaterThan(1);
    process.kill(pid, 'SIGKILL');
  });

  it('that does not read its stdin ends all the same', async () => {
    expect(await session.step({ name: 'a', argv: ['true'], stdin: Buffer.alloc(900_000) })).toMatchObject({ code: 0 });
  });

  it('that writes much is read no faster than it is taken, and all of it arrives', async () => {
    const end = await session.step({ name: 'a', argv: ['sh', '-c', 'head -c 5000000 /dev/zero | tr "\\0" x; echo'] });
    expect([end.code, end.stdout.length]).toEqual([0, 5_000_001]);
  });

  it('that cannot be started is an error, and may be tried again', async () => {
    await expect(session.step({ name: 'a', argv: ['no-such-program'], once: true })).rejects.toMatchObject({ code: 'command-not-found' });
    expect(await session.step({ name: 'a', argv: ['true'], once: true })).toMatchObject({ code: 0, joined: false });
  });

  it.each(['', 'x'.repeat(65)])('cannot be named %j', async (name) => {
    await expect(session.step({ name, argv: ['true'] })).rejects.toMatchObject({ code: 'invalid-argument' });
  });

  it(`${maxRunningSteps} run at once, and no more`, async () => {
    const steps = await Promise.all(
      Array.from({ length: maxRunningSteps }, async (_, i) => await session.startStep({ name: `s${i}`, argv: ['sleep', '1000'] })),
    );
    await expect(session.step({ name: 'more', argv: ['true'] })).rejects.toMatchObject({ code: 'no-room' });
    for (const { pid } of steps) process.kill(-pid, 'SIGKILL');
    for (const step of steps) await step.end();
    expect(await session.step({ name: 'more', argv: ['true'] })).toMatchObject({ code: 0 });
  });
});

describe('I-32: every session runs the plan', () => {
  it('a step that is not `once` runs again each time', async () => {
    const append = { name: 'a', argv: ['sh', '-c', 'echo x >> ran'] };
    await session.step(append);
    await session.step(append);
    expect(readFileSync(join(directory, 'ran'), 'utf8')).toBe('x\nx\n');
  });

  it('a step that still runs from a broken session is joined, with its output so far and its end', async () => {
    const request = {
      name: 'a',
      argv: ['sh', '-c', 'echo begun >> ran; echo first; until [ -e go ]; do sleep 0.02; done; echo last; exit 5'],
    };
    const step = await session.startStep(request);
    await step.until('first\n');
    const second = await nextSession();
    const again = await second.startStep(request);
    expect([again.joined, again.pid]).toEqual([true, step.pid]);
    await again.until('first\n');
    await second.step({ name: 'b', argv: ['touch', 'go'] });
    expect(await again.end()).toMatchObject({ code: 5, stdout: 'first\nlast\n' });
    expect(readFileSync(join(directory, 'ran'), 'utf8')).toBe('begun\n');
  });

  it('a `once` step runs once per start; its end and output are sent again, and HelloAck names it', async () => {
    const request = { name: 'post-init', argv: ['sh', '-c', 'echo x >> ran; echo out; echo err >&2'], once: true };
    expect(await hello()).toEqual([]);
    expect(await session.step(request)).toMatchObject({ joined: false, code: 0 });
    const second = await nextSession();
    expect(await hello(second)).toEqual(['post-init']);
    expect(await second.step(request)).toEqual({ joined: true, code: 0, signal: '', timedOut: false, stdout: 'out\n', stderr: 'err\n' });
    expect(readFileSync(join(directory, 'ran'), 'utf8')).toBe('x\n');
  });

  it('a `once` step that failed is reported as failed again, and is not done', async () => {
    const request = { name: 'post-init', argv: ['sh', '-c', 'echo x >> ran; exit 9'], once: true };
    await session.step(request);
    expect(await session.step(request)).toMatchObject({ joined: true, code: 9 });
    expect(await hello()).toEqual([]);
    expect(readFileSync(join(directory, 'ran'), 'utf8')).toBe('x\n');
  });

  it('agent-ready is done once the main process was started', async () => {
    expect(await session.ask({ case: 'agentReady', value: {} })).toMatchObject({
      case: 'agentReadyDone',
      value: { alreadyStarted: false },
    });
    expect(await hello()).toEqual(['agent-ready']);
    expect(await session.ask({ case: 'agentReady', value: {} })).toMatchObject({ case: 'agentReadyDone', value: { alreadyStarted: true } });
  });

  it('the main process waits for no step, only for agent-ready', async () => {
    await session.startStep({ name: 'long', argv: ['sleep', '1000'] });
    expect(await session.ask({ case: 'agentReady', value: {} })).toMatchObject({ case: 'agentReadyDone' });
  });
});

describe('requests of a session are answered beside each other', () => {
  it('a long step holds up neither Ping nor SignalMain nor Shutdown', async () => {
    await session.ask({ case: 'agentReady', value: {} });
    const step = await session.startStep({ name: 'long', argv: ['sleep', '1000'] });
    expect((await session.ask({ case: 'ping', value: {} })).case).toBe('pong');
    expect((await session.ask({ case: 'signalMain', value: { signal: 'SIGCONT' } })).case).toBe('signalMainDone');
    const notices = session.notices();
    expect((await session.ask({ case: 'shutdown', value: { graceMs: 1_000 } })).case).toBe('shutdownStarted');
    expect((await notices.next()).value).toMatchObject({ payload: { case: 'mainExited' } });
    expect(await box.exited).toBe(143);
    expect(() => process.kill(step.pid, 0)).toThrow('ESRCH');
  });

  it('a sandbox that is stopped in mid-plan kills its steps and ends', async () => {
    const step = await session.startStep({ name: 'long', argv: ['sh', '-c', 'trap "" TERM; echo up; while :; do sleep 0.05; done'] });
    await step.until('up\n');
    box.process.kill('SIGTERM');
    expect(await box.exited).toBe(143);
    expect(() => process.kill(step.pid, 0)).toThrow('ESRCH');
    expect(await readdir(box.runDirectory)).toContain('exit.json');
  });

  it('I-33: an unknown payload is answered unimplemented and ends nothing', async () => {
    await expect(session.ask({ case: undefined })).rejects.toMatchObject({ code: 'unimplemented' });
    expect((await session.ask({ case: 'ping', value: {} })).case).toBe('pong');
  });

  it(`of more than ${maxSessionRequests} at once the next is refused, and the session goes on`, async () => {
    const request = { name: 'long', argv: ['sleep', '1000'] };
    for (let i = 0; i < maxSessionRequests; i++) await session.startStep(request);
    await expect(session.ask({ case: 'ping', value: {} })).rejects.toMatchObject({ code: 'no-room' });
    session.cut();
    session = new TestSession(await box.client());
    expect((await session.ask({ case: 'ping', value: {} })).case).toBe('pong');
  });
});

it('R-20: a sandbox whose step runs is not idle, whatever became of the session', async () => {
  // With processes of its own only: those of the machine would count as its work.
  const launcher = ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child'];
  const idler = await startInit(test, { launcher, idleStopMs: 1_000 });
  try {
    const plan = new TestSession(await idler.client());
    await plan.ask({ case: 'agentReady', value: {} });
    await plan.startStep({ name: 'a', argv: ['sh', '-c', `sleep 2.5; touch ${directory}/ended`] });
    plan.cut();
    expect(await idler.exited).toBe(143);
    expect(await readdir(directory)).toContain('ended');
    expect(JSON.parse(readFileSync(join(idler.runDirectory, 'exit.json'), 'utf8'))).toMatchObject({ reason: 'idle' });
  } finally {
    await idler.close();
  }
});
