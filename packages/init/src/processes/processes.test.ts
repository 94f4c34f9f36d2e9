import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { readFileSync } from 'node:fs';
import { BoundedQueue, newId } from '@drover/foundation';
import { init } from '@drover/protocol';
import { fromConnectError } from '@drover/protocol/rpc';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { ReplayBudget, ReplayBuffer } from './replay.ts';
import { parseIdMap } from '@drover/linux';
import { mustBeMapped, resolveUser } from './users.ts';
import { createTestAuthority, startInit, type TestAuthority, type TestClient, type TestInit } from '../testing/index.ts';

let test: TestAuthority;
let box: TestInit;
let client: TestClient;

beforeAll(async () => {
  test = await createTestAuthority();
  box = await startInit(test, { main: { env: ['FROM_MAIN=1'], workdir: '/tmp' } });
});
afterAll(async () => {
  await box.close();
  await test.close();
});
afterEach(async () => {
  await client?.[Symbol.asyncDispose]();
});

type Request = MessageInitShape<typeof init.ExecRequestSchema>['payload'];

/** One Exec call: what it is sent can be added to, and its answers are read one by one. */
class Exec {
  readonly requests = new BoundedQueue<init.ExecRequest>({ name: 'requests', capacity: 100_000 });
  readonly #responses: AsyncIterator<init.ExecResponse>;
  readonly #abort = new AbortController();
  output = '';
  offset = 0n;

  constructor(from: TestClient, first: Request) {
    this.send(first);
    this.#responses = from.init.exec(this.requests, { signal: this.#abort.signal })[Symbol.asyncIterator]();
  }

  send(payload: Request): void {
    this.requests.push(create(init.ExecRequestSchema, { payload } as MessageInitShape<typeof init.ExecRequestSchema>));
  }

  async next(): Promise<init.ExecResponse['payload']> {
    const next = await this.#responses.next();
    if (next.done === true) throw new Error('the call ended');
    const { payload } = next.value;
    if (payload.case === 'output') {
      expect(payload.value.offset).toBe(this.offset);
      this.output += Buffer.from(payload.value.data).toString('latin1');
      this.offset += BigInt(payload.value.data.length);
    }
    if (payload.case === 'exit') this.requests.end();
    return payload;
  }

  async started(): Promise<init.ExecStarted> {
    const payload = await this.next();
    if (payload.case !== 'started') throw new Error(`${String(payload.case)} instead of started`);
    return payload.value;
  }

  async until(text: string): Promise<void> {
    while (!this.output.includes(text)) await this.next();
  }

  async exit(): Promise<init.ExitStatus> {
    for (;;) {
      const payload = await this.next();
      if (payload.case === 'exit') return payload.value;
    }
  }

  cut(): void {
    this.requests.end();
    this.#abort.abort();
  }
}

async function start(argv: readonly string[], options: Partial<MessageInitShape<typeof init.ExecStartSchema>> = {}): Promise<Exec> {
  client = await box.client();
  return new Exec(client, { case: 'start', value: { execId: newId('exec'), argv: [...argv], ...options } } as Request);
}

describe('I-39: exec', () => {
  it('has both output streams, the environment, the directory and the exit code', async () => {
    const exec = await start(['sh', '-c', 'echo out $FROM_MAIN $MINE $PWD $HOSTNAME; echo err >&2; exit 3'], { env: ['MINE=2'] });
    expect(await exec.exit()).toMatchObject({ code: 3, signal: '' });
    expect(exec.output).toContain('out 1 2 /tmp box\n');
    expect(exec.output).toContain('err\n');
  });

  it('reads stdin to its end, with backpressure', async () => {
    const exec = await start(['sha256sum'], { stdin: true });
    await exec.started();
    const chunk = Buffer.alloc(64 * 1024, 'x');
    for (let i = 0; i < 160; i++) exec.send({ case: 'stdin', value: chunk });
    exec.send({ case: 'stdinEof', value: true });
    expect(await exec.exit()).toMatchObject({ code: 0 });
    const { createHash } = await import('node:crypto');
    expect(exec.output).toContain(
      createHash('sha256')
        .update(Buffer.alloc(160 * 64 * 1024, 'x'))
        .digest('hex'),
    );
  });

  it('signals the whole process group', async () => {
    const exec = await start(['sh', '-c', 'sh -c "echo ready; sleep 1000"; echo not reached']);
    await exec.until('ready');
    exec.send({ case: 'signal', value: 'SIGTERM' });
    expect(await exec.exit()).toMatchObject({ code: 143, signal: 'SIGTERM' });
    expect(exec.output).not.toContain('not reached');
  });

  it('has a terminal that can be resized, and end of file as Ctrl-D', async () => {
    const exec = await start(['sh', '-c', 'trap "stty size" WINCH; stty size; test -t 0 && echo tty; cat'], {
      terminal: true,
      stdin: true,
      size: { rows: 20, columns: 70 } as never,
    });
    await exec.until('tty');
    expect(exec.output).toContain('20 70');
    exec.send({ case: 'stdin', value: Buffer.from('hello\n') });
    await exec.until('hello\r\nhello');
    // Once cat runs: the shell acts on the signal when cat has ended.
    exec.send({ case: 'resize', value: { rows: 33, columns: 101 } as never });
    exec.send({ case: 'stdinEof', value: true });
    expect(await exec.exit()).toMatchObject({ code: 0 });
    expect(exec.output).toContain('33 101');
  });

  it('the terminal of one is not open in those that are started after it', async () => {
    const first = await start(['cat'], { terminal: true, stdin: true });
    await first.started();
    await using other = await box.client();
    for (const terminal of [false, true]) {
      const argv = ['ls', '-l', '/proc/self/fd'];
      const second = new Exec(other, { case: 'start', value: { execId: newId('exec'), argv, terminal } } as unknown as Request);
      expect(await second.exit()).toMatchObject({ code: 0 });
      expect(second.output).not.toContain('ptmx');
    }
    first.send({ case: 'stdinEof', value: true });
    expect(await first.exit()).toMatchObject({ code: 0 });
  });

  it.each([
    ['command-not-found', ['no-such-command-here']],
    ['command-not-executable', ['/etc/passwd']],
    ['command-not-found', ['/no/such/file']],
  ])('says %s in a code', async (code, argv) => {
    const exec = await start(argv);
    const error = await exec.started().catch(fromConnectError);
    expect(error).toMatchObject({ code });
  });

  it('lets the kernel kill the processes of the user before init', async () => {
    const sleeper = await start(['sleep', '1000']);
    const { pid } = await sleeper.started();
    expect(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8')).toBe('500\n');
    sleeper.send({ case: 'signal', value: 'KILL' });
    await sleeper.exit();
  });

  it.each([
    ['a little', 'while :; do echo noise; sleep 0.1; done'],
    ['as much as it can', 'exec yes noise'],
  ])('I-37: ends with its process, though what that left behind goes on writing %s', async (_, noise) => {
    const exec = await start(['sh', '-c', `(${noise}) & echo said; exit 6`]);
    expect(await exec.exit()).toMatchObject({ code: 6 });
    expect(exec.output).toContain('said\n');
  });

  it('keeps a slow reader from filling the memory', async () => {
    const exec = await start(['sh', '-c', 'echo $$; exec head -c 200000000 /dev/zero']);
    await exec.until('\n');
    const [pid = ''] = exec.output.split('\n');
    const memory = (): number => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${box.pid}/status`, 'utf8'))?.[1]);
    const written = (): number => Number(/wchar: (\d+)/.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1]);
    const before = memory();
    // Nothing is read here from now on: in the end the process waits, with most of it unwritten.
    let last = -1;
    await expect.poll(() => last === (last = written()), { interval: 200, timeout: 20_000 }).toBe(true);
    expect(last).toBeLessThan(50_000_000);
    expect(memory() - before).toBeLessThan(100_000);
    exec.cut();
  });
});

describe('I-40: an exec outlives its connection', () => {
  it('returns the missed output, later output and the exit, with nothing lost or repeated', async () => {
    const first = await start(['sh', '-c', 'for i in $(seq 1 40); do echo line $i; sleep 0.02; done; exit 5'], { execId: 'again' });
    const { pid } = await first.started();
    await first.until('line 3\n');
    client.socket.destroy();
    const written = (): number => Number(/wchar: (\d+)/.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1]);
    const before = written();
    await expect.poll(written, { timeout: 20_000 }).toBeGreaterThan(before + 50);
    client = await box.client();
    const second = new Exec(client, { case: 'attach', value: { execId: 'again', afterOffset: first.offset } });
    second.offset = first.offset;
    expect((await second.started()).truncatedBytes).toBe(0n);
    expect(await second.exit()).toMatchObject({ code: 5 });
    expect(first.output + second.output).toBe(Array.from({ length: 40 }, (_, i) => `line ${i + 1}\n`).join(''));
  });

  it('a second start with the id of an ended exec attaches, and starts nothing', async () => {
    const first = await start(['sh', '-c', 'echo $$'], { execId: 'once' });
    await first.exit();
    const second = await start(['sh', '-c', 'echo $$'], { execId: 'once' });
    await second.exit();
    expect(second.output).toBe(first.output);
  });

  it('counts the output that the bounded buffer has dropped', async () => {
    const first = await start(['sh', '-c', 'echo go; sleep 0.3; head -c 3000000 /dev/zero; echo; exit 9'], { execId: 'much' });
    await first.until('go');
    first.cut();
    await expect.poll(async () => await truncated('much'), { timeout: 10_000 }).toBeGreaterThan(1_900_000n);
    client = await box.client();
    const second = new Exec(client, { case: 'attach', value: { execId: 'much', replay: true } });
    const lost = (await second.started()).truncatedBytes;
    second.offset = lost;
    expect(await second.exit()).toMatchObject({ code: 9 });
    expect(lost + BigInt(second.output.length)).toBe(3_000_004n);
    expect(second.output.length).toBeLessThanOrEqual(1024 * 1024);
  });

  it('an exec that never was is exec-not-found', async () => {
    client = await box.client();
    const exec = new Exec(client, { case: 'attach', value: { execId: 'never' } });
    const error = await exec.started().catch(fromConnectError);
    expect(error).toMatchObject({ code: 'exec-not-found' });
  });

  async function truncated(id: string): Promise<bigint> {
    const other = await box.client();
    const exec = new Exec(other, { case: 'attach', value: { execId: id, replay: true } });
    const started = await exec.started();
    exec.cut();
    await other[Symbol.asyncDispose]();
    return started.truncatedBytes;
  }
});

describe('users', () => {
  const passwd = 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n';
  const group = 'root:x:0:\nstaff:x:50:app\n';
  it.each([
    ['', { uid: 0, gid: 0, home: '/root' }],
    ['app', { uid: 1000, gid: 1001, home: '/home/app' }],
    ['1000', { uid: 1000, gid: 1001, home: '/home/app' }],
    ['app:staff', { uid: 1000, gid: 50, home: '/home/app' }],
    ['4242', { uid: 4242, gid: 0, home: '/' }],
    ['4242:77', { uid: 4242, gid: 77, home: '/' }],
  ])('%j', (text, expected) => {
    expect(resolveUser(text, passwd, group)).toMatchObject(expected);
  });
  it.each(['nobody-here', 'app:no-group', '99999999999'])('refuses %j', (text) => {
    expect(() => resolveUser(text, passwd, group)).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
  });
  it('an id that the user namespace does not have is refused in words', () => {
    const map = parseIdMap('         0 1000000000      65536\n     70000 1000070000          1\n');
    for (const id of [0, 65_535, 70_000]) expect(() => mustBeMapped('user', id, map)).not.toThrow();
    expect(() => mustBeMapped('group', 99_999, map)).toThrow('the sandbox has no group 99999: its ids end with 70000');
    expect(() => mustBeMapped('user', 99_999, [])).not.toThrow();
  });
  it('numbers need no accounts', () => {
    expect(resolveUser('5:6', '', '')).toMatchObject({ uid: 5, gid: 6 });
  });
});

it('the buffer returns its content from any offset that it keeps', () => {
  const buffer = new ReplayBuffer(new ReplayBudget());
  let all = '';
  for (let i = 0; i < 2000; i++) {
    const text = `${i} `.repeat((i * 7) % 200);
    buffer.push(i % 3 === 0, Buffer.from(text));
    all += text;
  }
  expect(buffer.end).toBe(all.length);
  for (const offset of [0, buffer.start, buffer.start + 12345, all.length - 1]) {
    let text = '';
    let at = Math.max(offset, buffer.start);
    for (let chunk = buffer.read(offset); chunk !== undefined; chunk = buffer.read(at)) {
      text += chunk.data.toString();
      at = chunk.offset + chunk.data.length;
    }
    expect(text).toBe(all.slice(Math.max(offset, buffer.start)));
  }
});
