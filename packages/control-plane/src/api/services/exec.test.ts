import { once } from 'node:events';
import { duplexPair } from 'node:stream';
import { finished } from 'node:stream/promises';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError, FakeClock, type HostId } from '@drover/foundation';
import { link, sandbox } from '@drover/protocol';
import type { ExecHandle } from '@drover/sdk';
import { describe, expect, test } from 'vitest';
import { initAnswerMs, initCallMs, initSilenceMs } from '../../limits.ts';
import { FakeProcess } from '../testing/fakes.ts';
import { startTestApi, type TestApi } from '../testing/server.ts';

const { SandboxState } = sandbox;

async function running(api: TestApi, spec: object = {}): Promise<{ readonly id: string; readonly hostId: HostId }> {
  const hostId = await api.addHost('alpha');
  const { id } = await api.client.sandboxes.create({ name: 'box', spec: { image: 'host', ...spec } });
  await api.observe(hostId, id, { state: SandboxState.RUNNING });
  return { id, hostId };
}

async function text(stream: AsyncIterable<Uint8Array>): Promise<string> {
  let all = '';
  for await (const chunk of stream) all += Buffer.from(chunk).toString();
  return all;
}

async function all(exec: ExecHandle): Promise<{ readonly out: string; readonly err: string; readonly code: number }> {
  const [out, err, { code }] = await Promise.all([text(exec.stdout), text(exec.stderr), exec.exit]);
  return { out, err, code };
}

function logRecords(...texts: readonly string[]): link.LogRecord[] {
  let offset = 0n;
  return texts.map((text, i) => {
    const data = Buffer.from(text);
    const record = { stream: link.LogRecord_Stream.STDOUT, data, offset, time: timestampFromMs(1_000 + i) };
    offset += BigInt(data.length);
    return create(link.LogRecordSchema, record);
  });
}

describe('exec', () => {
  test('carries output, input, size, signals and the exit status', async () => {
    await using api = await startTestApi();
    await running(api);
    const process = new FakeProcess();
    api.sessions.serve({ exec: process.exec });
    const exec = api.client.sandboxes.exec('box', {
      argv: ['cat'],
      env: { A: 'b' },
      stdin: true,
      terminal: true,
      size: { rows: 24, columns: 80 },
    });
    const result = all(exec);
    expect(await exec.started).toMatchObject({ execId: exec.execId, pid: 42 });
    expect(process.opened[0]).toMatchObject({ argv: ['cat'], env: ['A=b'], terminal: true, size: { rows: 24, columns: 80 } });
    exec.stdin.end('typed');
    exec.resize({ rows: 50, columns: 132 });
    exec.kill('SIGUSR1');
    await process.until(() => process.inputEnded && process.resized.length > 0 && process.signals.length > 0);
    expect(Buffer.concat(process.input).toString()).toBe('typed');
    expect(process.resized[0]).toMatchObject({ rows: 50, columns: 132 });
    expect(process.signals).toEqual(['SIGUSR1']);
    process.write('to stdout');
    process.write('to stderr', true);
    process.exit(3);
    expect(await result).toEqual({ out: 'to stdout', err: 'to stderr', code: 3 });
  });

  test.each([
    ['says nothing', async (): Promise<void> => await new Promise<never>(() => undefined)],
    // Each time it is reached it holds the call for a while, and breaks the connection.
    ['breaks its connection again and again', async (clock: FakeClock): Promise<void> => await clock.sleep(initAnswerMs / 3)],
  ])('fails with timed-out when init %s', async (_, silence) => {
    const clock = new FakeClock(Date.now());
    await using api = await startTestApi({ clock });
    await running(api);
    let reached = 0;
    api.sessions.serve({
      // eslint-disable-next-line require-yield
      async *exec() {
        reached++;
        await silence(clock);
        throw new ConnectError('the connection was reset', Code.Unavailable);
      },
    });
    const exec = api.client.sandboxes.exec('box', { argv: ['true'] });
    let error: DroverError | undefined;
    exec.exit.catch((thrown: DroverError) => (error = thrown));
    exec.started.catch(() => undefined);
    await expect.poll(() => reached).toBe(1);
    const began = clock.now();
    await expect
      .poll(async () => {
        await clock.advance(1_000);
        return error;
      })
      .toMatchObject({ code: 'timed-out', message: 'sandbox box did not respond to the exec within 30 s' });
    expect(clock.now() - began).toBeLessThan(initAnswerMs * 2);
  });

  test('I-40: when the session breaks, the caller sees neither a gap nor a repeat', async () => {
    await using api = await startTestApi();
    await running(api);
    const process = new FakeProcess();
    api.sessions.serve({ exec: process.exec });
    const exec = api.client.sandboxes.exec('box', { argv: ['long'] });
    const result = all(exec);
    process.write('one ');
    await exec.started;
    for (const word of ['two ', 'three ']) {
      const before = process.opened.length;
      process.cut(new ConnectError('the connection was reset', Code.Unavailable));
      process.write(word);
      await process.until(() => process.opened.length > before);
    }
    process.exit(0);
    expect(await result).toEqual({ out: 'one two three ', err: '', code: 0 });
    expect(process.opened.slice(1).every(({ $typeName }) => $typeName === 'drover.init.v1.ExecAttach')).toBe(true);
  });

  test('I-40: when the server goes away and comes back, the client attaches again by itself', async () => {
    await using api = await startTestApi();
    await running(api);
    const process = new FakeProcess();
    api.sessions.serve({ exec: process.exec });
    const breaks: Error[] = [];
    const exec = api.client.sandboxes.exec('box', { argv: ['long'], onReconnect: (error) => breaks.push(error) });
    const result = all(exec);
    process.write('before ');
    await exec.started;
    await api.stop();
    process.write('meanwhile ');
    await api.restart();
    process.write('after');
    process.exit(7);
    expect(await result).toEqual({ out: 'before meanwhile after', err: '', code: 7 });
    expect(breaks.length).toBeGreaterThan(0);
  });

  test('I-40: input that was on its way when the server went away is an error that says so', async () => {
    await using api = await startTestApi();
    await running(api);
    const process = new FakeProcess();
    api.sessions.serve({ exec: process.exec });
    const exec = api.client.sandboxes.exec('box', { argv: ['cat'], stdin: true });
    const result = all(exec).catch((error: unknown) => error);
    await exec.started;
    exec.stdin.write('typed');
    await process.until(() => process.input.length > 0);
    await api.stop();
    expect(await result).toMatchObject({
      code: 'session-unavailable',
      message: expect.stringContaining('the connection broke while input was being sent') as string,
      hint: expect.stringContaining(exec.execId) as string,
    });
  });

  test('R-20: what is asked of a paused sandbox is refused with how to resume it, instead of waiting without a word', async () => {
    await using api = await startTestApi();
    const { id, hostId } = await running(api);
    await api.client.sandboxes.pause('box');
    await api.observe(hostId, id, { state: SandboxState.PAUSED });
    const refusal = { code: 'sandbox-not-running', message: 'sandbox box is paused', hint: '`drover sandbox resume box` continues it' };
    const exec = api.client.sandboxes.exec('box', { argv: ['true'] });
    exec.started.catch(() => undefined);
    await expect(exec.exit).rejects.toMatchObject(refusal);
    await expect(text(api.client.sandboxes.copyOut('box', '/etc/hosts') as AsyncIterable<Uint8Array>)).rejects.toMatchObject(refusal);
    await expect(api.client.sandboxes.copyIn('box', '/tmp', (async function* () {})())).rejects.toMatchObject(refusal);
    await expect(text(api.client.sandboxes.forward('box', 80) as AsyncIterable<Uint8Array>)).rejects.toMatchObject(refusal);
  });

  test('input that a break may have swallowed is an error, not silence', async () => {
    await using api = await startTestApi();
    await running(api);
    const process = new FakeProcess();
    api.sessions.serve({ exec: process.exec });
    const exec = api.client.sandboxes.exec('box', { argv: ['cat'], stdin: true });
    const failure = exec.exit.then(
      () => undefined,
      (error: unknown) => error,
    );
    exec.stdin.write('half a file');
    await process.until(() => process.input.length > 0);
    process.cut(new ConnectError('the connection was reset', Code.Unavailable));
    const error = await failure;
    expect(error).toBeInstanceOf(DroverError);
    expect((error as DroverError).message).toContain('some of it may be lost');
  });

  test('what init refuses reaches the caller as it was said, without another try', async () => {
    await using api = await startTestApi();
    await running(api);
    let calls = 0;
    api.sessions.serve({
      exec: () => {
        calls++;
        throw new ConnectError('there is no command nosuch', Code.FailedPrecondition, {
          'drover-code': 'command-not-found',
          'drover-hint': 'install%20it',
        });
      },
    });
    const exec = api.client.sandboxes.exec('box', { argv: ['nosuch'] });
    await expect(exec.exit).rejects.toMatchObject({ code: 'command-not-found', message: 'there is no command nosuch', hint: 'install it' });
    expect(calls).toBe(1);
  });

  test('a slow reader holds the process up, and nobody’s memory grows', async () => {
    await using api = await startTestApi();
    await running(api);
    let sent = 0;
    const chunk = new Uint8Array(64 * 1024);
    const total = 64 * 1024 * 1024;
    api.sessions.serve({
      async *exec(requests) {
        const iterator = requests[Symbol.asyncIterator]();
        await iterator.next();
        yield { payload: { case: 'started', value: { execId: 'x' } } } as never;
        while (sent < total) {
          yield { payload: { case: 'output', value: { data: chunk, offset: BigInt(sent), stderr: false } } } as never;
          sent += chunk.byteLength;
        }
        yield { payload: { case: 'exit', value: { code: 0 } } } as never;
      },
    });
    const exec = api.client.sandboxes.exec('box', { argv: ['yes'] });
    await exec.started;
    // It stops by itself: the same count twice over many turns of the loop.
    let before = -1;
    while (before !== sent || sent === 0) {
      before = sent;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(sent).toBeLessThan(total / 4);
    let read = 0;
    for await (const bytes of exec.stdout) read += (bytes as Uint8Array).byteLength;
    expect(read).toBe(total);
    expect((await exec.exit).code).toBe(0);
  });

  test('attaching to a main process that has ended gives its kept output and its exit code', async () => {
    await using api = await startTestApi();
    const { id, hostId } = await running(api);
    api.hub.logs.set(hostId, logRecords('hello ', 'world'));
    api.sessions.connect = () => Promise.reject(new DroverError('sandbox-not-running', 'it has ended'));
    await api.observe(hostId, id, { state: SandboxState.STOPPED, exitCode: 5 });
    expect(await all(api.client.sandboxes.exec('box', { execId: 'main' }))).toEqual({ out: 'hello world', err: '', code: 5 });
  });

  test('a main process that ends with its session hands over the rest of its output', async () => {
    await using api = await startTestApi();
    const { id, hostId } = await running(api);
    const process = new FakeProcess();
    api.sessions.serve({ exec: process.exec });
    api.hub.logs.set(hostId, logRecords('hello ', 'world'));
    const exec = api.client.sandboxes.exec('box', { execId: 'main' });
    const result = all(exec);
    process.write('hello ');
    await exec.started;
    api.sessions.connect = () => Promise.reject(new DroverError('sandbox-not-running', 'it has ended'));
    process.cut(new ConnectError('the connection was reset', Code.Unavailable));
    await api.observe(hostId, id, { state: SandboxState.STOPPED, exitCode: 0 });
    expect(await result).toEqual({ out: 'hello world', err: '', code: 0 });
  });

  test('a sandbox that failed to start tells why instead of an exit code', async () => {
    await using api = await startTestApi();
    const { id, hostId } = await running(api);
    api.sessions.connect = () => Promise.reject(new DroverError('sandbox-not-running', 'it has failed'));
    await api.observe(hostId, id, { state: SandboxState.FAILED, reason: 'image-not-found', message: 'there is no image x' });
    const exec = api.client.sandboxes.exec('box', { execId: 'main' });
    await expect(exec.exit).rejects.toMatchObject({
      code: 'image-not-found',
      message: expect.stringContaining('there is no image x') as string,
    });
  });

  test('detaching leaves the process alone', async () => {
    await using api = await startTestApi();
    await running(api);
    const process = new FakeProcess();
    api.sessions.serve({ exec: process.exec });
    const exec = api.client.sandboxes.exec('box', { argv: ['long'], execId: 'mine' });
    await exec.started;
    exec.detach();
    await expect(exec.exit).rejects.toMatchObject({ code: 'cancelled' });
    process.write('kept');
    process.exit(0);
    expect(await all(api.client.sandboxes.exec('box', { execId: 'mine', replay: true }))).toEqual({ out: 'kept', err: '', code: 0 });
  });
});

describe('logs', () => {
  test('come from the host when the sandbox does not run, which is told what is wanted', async () => {
    await using api = await startTestApi();
    const { id, hostId } = await running(api);
    await api.observe(hostId, id, { state: SandboxState.STOPPED, exitCode: 0 });
    api.hub.logs.set(hostId, logRecords('a\nb\n', 'c\nd\n'));
    let out = '';
    const since = new Date(5_000);
    for await (const { data } of api.client.sandboxes.logs('box', { tailLines: 3, since })) out += Buffer.from(data).toString();
    expect(out).toBe('a\nb\nc\nd\n');
    expect(api.hub.opened).toMatchObject([{ case: 'logs', value: { tailLines: 3n, since: { seconds: 5n } } }]);
  });

  test('followed over a break of the session show each line once', async () => {
    await using api = await startTestApi();
    const { id, hostId } = await running(api);
    const records = logRecords('a\n', 'b\n', 'c\n');
    let tries = 0;
    api.sessions.serve({
      async *logs() {
        tries++;
        for (const { data, time } of records.slice(0, tries + 1)) yield { stderr: false, data, ...(time === undefined ? {} : { time }) };
        if (tries === 1) throw new ConnectError('the connection was reset', Code.Unavailable);
        await api.observe(hostId, id, { state: SandboxState.STOPPED, exitCode: 0 });
      },
    });
    let out = '';
    for await (const { data } of api.client.sandboxes.logs('box', { follow: true })) out += Buffer.from(data).toString();
    expect(out).toBe('a\nb\nc\n');
    expect(tries).toBe(2);
  });
});

describe('logs of a server that goes away', () => {
  test('followed, they go on where they were, each line once, to the end of the process', async () => {
    await using api = await startTestApi();
    const { id, hostId } = await running(api);
    const records = logRecords('a\nb\n', 'c\n', 'd\n');
    let tries = 0;
    const tails: bigint[] = [];
    api.sessions.serve({
      async *logs({ tailLines }) {
        tries++;
        tails.push(tailLines);
        for (const { data, time } of records.slice(0, tries + 1)) yield { stderr: false, data, ...(time === undefined ? {} : { time }) };
        if (tries === 1) await new Promise(() => undefined);
        await api.observe(hostId, id, { state: SandboxState.STOPPED, exitCode: 0 });
      },
    });
    let out = '';
    let breaks = 0;
    for await (const { data } of api.client.sandboxes.logs('box', { follow: true, tailLines: 5, onReconnect: () => breaks++ })) {
      out += Buffer.from(data).toString();
      if (out === 'a\nb\nc\n') {
        await api.stop();
        await api.restart();
      }
    }
    expect(out).toBe('a\nb\nc\nd\n');
    expect(breaks).toBeGreaterThan(0);
    expect(tails).toEqual([5n, 0n]);
  });
});

describe('bytes', () => {
  test('are copied in and out', async () => {
    await using api = await startTestApi();
    await running(api);
    let received = 0;
    let path = '';
    api.sessions.serve({
      async copyIn(requests) {
        for await (const { payload } of requests) {
          if (payload.case === 'target') path = Buffer.from(payload.value.path).toString();
          if (payload.case === 'tar') received += payload.value.byteLength;
        }
        return { entries: 1n, bytes: BigInt(received) };
      },
      async *copyOut(request) {
        await Promise.resolve();
        yield { tar: Buffer.from(`tar of ${Buffer.from(request.path).toString()}`) };
      },
    });
    async function* tar(): AsyncGenerator<Uint8Array> {
      await Promise.resolve();
      for (let i = 0; i < 3; i++) yield new Uint8Array(100_000);
    }
    expect(await api.client.sandboxes.copyIn('box', '/work', tar())).toMatchObject({ entries: 1n, bytes: 300_000n });
    expect(path).toBe('/work');
    expect(await text(api.client.sandboxes.copyOut('box', '/work'))).toBe('tar of /work');
  });

  test('are forwarded both ways, and the end of one direction leaves the other open', async () => {
    await using api = await startTestApi();
    await running(api);
    api.sessions.serve({
      async *forward(requests) {
        let got = '';
        let port = 0;
        for await (const { payload } of requests) {
          if (payload.case === 'port') port = payload.value;
          if (payload.case === 'data') got += Buffer.from(payload.value).toString();
        }
        // Only after the caller's end.
        yield { payload: { case: 'data', value: Buffer.from(`${port} heard ${got}`) } } as never;
      },
    });
    const socket = api.client.sandboxes.forward('box', 8080);
    socket.end('question');
    expect(await text(socket)).toBe('8080 heard question');
  });

  test('are still sent into the sandbox after the program there has ended its side', async () => {
    await using api = await startTestApi();
    await running(api);
    let got = '';
    const inputEnded = Promise.withResolvers<void>();
    api.sessions.serve({
      async *forward(requests) {
        yield { payload: { case: 'data', value: Buffer.from('that was all') } } as never;
        yield { payload: { case: 'eof', value: true } } as never;
        for await (const { payload } of requests) if (payload.case === 'data') got += Buffer.from(payload.value).toString();
        inputEnded.resolve();
      },
    });
    const socket = api.client.sandboxes.forward('box', 8080);
    // Not by iteration, which destroys a stream at its end.
    let answer = '';
    socket.on('data', (data: Buffer) => (answer += data.toString()));
    await once(socket, 'end');
    expect(answer).toBe('that was all');
    expect([socket.readableEnded, socket.writable]).toEqual([true, true]);
    socket.end('said after its end');
    await inputEnded.promise;
    expect(got).toBe('said after its end');
    await finished(socket);
  });
});

describe('silence', () => {
  const never = async (): Promise<never> => await new Promise<never>(() => undefined);
  /** Lets time pass until the call has failed. */
  async function failure(clock: FakeClock, call: Promise<unknown>): Promise<DroverError> {
    let error: DroverError | undefined;
    call.catch((thrown: DroverError) => (error = thrown));
    await expect
      .poll(async () => {
        await clock.advance(10_000);
        return error !== undefined;
      })
      .toBe(true);
    return error as DroverError;
  }

  test('of init ends a copy out, a copy in and what asks for execs, and the log comes from the host', async () => {
    const clock = new FakeClock(Date.now());
    await using api = await startTestApi({ clock });
    const { hostId } = await running(api);
    api.sessions.serve({
      // eslint-disable-next-line require-yield
      async *copyOut() {
        await never();
      },
      copyIn: never,
      listExecs: never,
      signalExec: never,
      // eslint-disable-next-line require-yield
      async *logs() {
        await never();
      },
    });
    api.hub.logs.set(hostId, logRecords('kept'));
    const { sandboxes } = api.client;
    const late = { code: 'timed-out', message: `sandbox box did not respond to the copy within ${initSilenceMs / 1000} s` };
    expect(await failure(clock, text(sandboxes.copyOut('box', '/tmp')))).toMatchObject(late);
    const tar = (async function* () {
      await Promise.resolve();
      yield Buffer.alloc(512);
    })();
    expect(await failure(clock, sandboxes.copyIn('box', '/tmp', tar))).toMatchObject(late);

    const muted = { code: 'timed-out', message: `sandbox box did not respond to the request within ${initCallMs / 1000} s` };
    expect(await failure(clock, sandboxes.execs('box'))).toMatchObject(muted);
    expect(await failure(clock, sandboxes.killExec('box', 'x'))).toMatchObject(muted);

    let kept = '';
    const reading = (async () => {
      for await (const { data } of sandboxes.logs('box')) kept += String(Buffer.from(data));
    })();
    await expect
      .poll(async () => {
        await clock.advance(10_000);
        return kept;
      })
      .toBe('kept');
    await reading;
  });

  test('of a host ends a copy out of a sandbox that has ended', async () => {
    const clock = new FakeClock(Date.now());
    await using api = await startTestApi({ clock });
    const { id, hostId } = await running(api);
    await api.observe(hostId, id, { state: SandboxState.STOPPED, exitCode: 0 });
    const [near] = duplexPair();
    api.hub.openHostStream = async () => await Promise.resolve(near);
    const late = { code: 'timed-out', message: `the host of sandbox box did not respond to the copy within ${initSilenceMs / 1000} s` };
    expect(await failure(clock, text(api.client.sandboxes.copyOut('box', '/tmp')))).toMatchObject(late);
    await expect.poll(() => near.destroyed).toBe(true);
  });
});
