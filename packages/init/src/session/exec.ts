import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { clip, DroverError } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { parseSignal } from '@drover/spec';
import { maxChunkBytes, maxListedCommandLength } from '../limits.ts';
import type { Exit, ManagedProcess } from '../processes/index.ts';
import type { Call, Reply } from '../server/index.ts';
import type { Sandbox } from '../sandbox.ts';

type ExecCall = Call<init.ExecRequest, Reply<'exec'>>;

/** Starts or finds a process and carries its streams until it ends or the client disconnects; the process runs on (I-40). */
export async function exec(call: ExecCall, sandbox: Sandbox): Promise<void> {
  const requests = call.requests[Symbol.asyncIterator]();
  const first = await requests.next();
  if (first.done === true) throw new DroverError('protocol-violation', 'the first message must start an exec or attach to one');
  const { process, from, replay } = await open(first.value, sandbox, call.signal);
  const start = replay ? process.outputStart : Math.min(from, process.outputEnd);
  await call.send(
    respond({
      case: 'started',
      value: { execId: process.id, pid: process.spawned.pid, truncatedBytes: BigInt(process.truncatedAfter(replay ? 0 : start)) },
    }),
  );
  const input = feed(requests, process, call.signal);
  const output = (async () => {
    for await (const chunk of process.output(start, call.signal)) {
      for (let at = 0; at < chunk.data.length; at += maxChunkBytes) {
        const data = chunk.data.subarray(at, at + maxChunkBytes);
        await call.send(respond({ case: 'output', value: { stderr: chunk.stderr, data, offset: BigInt(chunk.offset + at) } }));
      }
    }
    call.signal.throwIfAborted();
    await call.send(respond({ case: 'exit', value: exitStatus(await process.finished) }));
  })();
  // A malformed message of the client ends the call; the end of its input does not.
  await Promise.race([output, input.then(() => new Promise<never>(() => undefined))]);
}

async function open(
  request: init.ExecRequest,
  sandbox: Sandbox,
  signal: AbortSignal,
): Promise<{ readonly process: ManagedProcess; readonly from: number; readonly replay: boolean }> {
  switch (request.payload.case) {
    case 'start': {
      const start = request.payload.value;
      const process = await sandbox.startExec(start);
      return { process, from: 0, replay: false };
    }
    case 'attach': {
      const attach = request.payload.value;
      // An attach may precede AgentReady on the same connection: it waits for the start.
      const process = attach.execId === 'main' ? await sandbox.mainProcess(signal) : await sandbox.execs.get(attach.execId);
      if (attach.lingerMs !== undefined && attach.execId !== 'main') await sandbox.execs.setLinger(attach.execId, attach.lingerMs);
      if (attach.size !== undefined) process.spawned.resize(attach.size.rows, attach.size.columns);
      return { process, from: Number(attach.afterOffset), replay: attach.replay };
    }
    default:
      throw new DroverError('protocol-violation', 'the first message must start an exec or attach to one');
  }
}

/** A process that does not read delays its input alone: resizes and signals still reach it, until the next chunk of input. */
async function feed(requests: AsyncIterator<init.ExecRequest>, process: ManagedProcess, signal: AbortSignal): Promise<void> {
  let writing: Promise<void> = Promise.resolve();
  for (;;) {
    const next = await requests.next();
    if (next.done === true) return;
    const { payload } = next.value;
    switch (payload.case) {
      case 'stdin':
        await writing;
        writing = process.write(payload.value, signal);
        // It rejects only when the call has ended; the next chunk finds out.
        writing.catch(() => undefined);
        break;
      case 'stdinEof':
        if (payload.value) process.spawned.endStdin();
        break;
      case 'resize':
        process.spawned.resize(payload.value.rows, payload.value.columns);
        break;
      case 'signal':
        process.kill(parseSignal(payload.value));
        break;
      default:
        throw new DroverError('protocol-violation', 'an exec is started once, by the first message');
    }
  }
}

export async function listExecs(call: Call<init.ListExecsRequest, Reply<'listExecs'>>, sandbox: Sandbox): Promise<void> {
  const execs = (await sandbox.execs.list()).map(({ process, argv, user, startedAt, linger }) => ({
    execId: process.id,
    argv: shortened(argv),
    user,
    pid: process.spawned.pid,
    terminal: process.terminal,
    startedAt: timestampFromMs(startedAt),
    clients: process.readers,
    lingerMs: linger.ms,
    ...(process.exit !== undefined && { exit: exitStatus(process.exit) }),
  }));
  await call.send({ execs });
}

/** The beginning of a command, as a list shows it: all commands together must fit into one message. */
function shortened(argv: readonly string[]): string[] {
  let left = maxListedCommandLength;
  return argv.flatMap((argument) => {
    if (left <= 0) return [];
    const shown = clip(argument, left);
    left -= shown.length + 1;
    return [shown];
  });
}

export async function signalExec(call: Call<init.SignalExecRequest, Reply<'signalExec'>>, sandbox: Sandbox): Promise<void> {
  let request: init.SignalExecRequest | undefined;
  for await (const message of call.requests) request = message;
  const signal = parseSignal(request?.signal ?? '');
  const process = await sandbox.execs.get(request?.execId ?? '');
  const signalled = process.exit === undefined;
  process.kill(signal);
  await call.send({ signalled });
}

function respond(payload: NonNullable<Reply<'exec'>['payload']>): Reply<'exec'> {
  return { payload };
}

/** An exit in the form of the protocol. */
export function exitStatus({ code, signal, at, outOfMemory }: Exit): MessageInitShape<typeof init.ExitStatusSchema> {
  return { code, signal, at: timestampFromMs(at), outOfMemory };
}
