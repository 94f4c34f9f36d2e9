import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt';
import { DroverError, systemClock } from '@drover/foundation';
import type { init } from '@drover/protocol';
import { rpcEdge } from '@drover/protocol/rpc';
import { GrpcServer } from '@drover/protocol/grpc-server';
import { maxSessionMessageBytes } from '@drover/spec';
import type { Identity } from './identity/index.ts';
import { lingerMs, maxConcurrentCalls, maxCopyCalls, maxExecCalls, maxForwardCalls, maxListCalls, maxLogCalls } from './limits.ts';
import { readLog } from './logs/index.ts';
import type { Sandbox } from './sandbox.ts';
import type { Call, Handlers, Reply } from './server/index.ts';
import { methodsOf } from './methods.ts';
import { exec, listExecs, session, signalExec } from './session/index.ts';

export interface InitServiceOptions {
  readonly sandbox: Sandbox;
  readonly identity: Identity;
  /** Called at the start and at the end of each call. */
  readonly onCall?: () => void;
  readonly warn: (message: string) => void;
}

/** InitService over one sandbox, on the connections that it accepts: the listener has authenticated their peers (I-3). */
export function createInitService({ sandbox, identity, onCall = ignore, warn }: InitServiceOptions): GrpcServer {
  const workdir = sandbox.config.main.workdir === '' ? '/' : sandbox.config.main.workdir;
  const [forwards, execs, copies, logReaders, lists] = [
    new CallLimit('connections are forwarded into the sandbox', maxForwardCalls),
    new CallLimit('clients are attached to commands of the sandbox', maxExecCalls),
    new CallLimit('copies to and from the sandbox are under way', maxCopyCalls),
    new CallLimit('clients read the logs of the sandbox', maxLogCalls),
    new CallLimit('questions about the execs of the sandbox are being answered', maxListCalls),
  ];
  return serve(
    { onCall, warn },
    {
      session: (call) =>
        session(call, sandbox, identity, onCall, (id, error) => warn(`a request of the session failed ${id}: ${describe(error)}`)),
      exec: (call) => execs.run(() => sandbox.attached(() => exec(call, sandbox))),
      listExecs: (call) => lists.run(() => listExecs(call, sandbox)),
      signalExec: (call) => lists.run(() => signalExec(call, sandbox)),
      logs: (call) => logReaders.run(() => logs(call, sandbox)),
      // The three below are loaded when first used: an idle sandbox has no cost of them.
      copyIn: (call) =>
        copies.run(() => sandbox.attached(async () => (await import('./files/index.ts')).copyIn(call, workdir, sandbox.config.main.user))),
      copyOut: (call) => copies.run(() => sandbox.attached(async () => (await import('./files/index.ts')).copyOut(call, workdir))),
      forward: (call) => forwards.run(() => sandbox.attached(async () => (await import('./session/forward.ts')).forward(call))),
    },
  );
}

/** InitService by these handlers. Init logs failures of its own alone: its log has little room. */
export function serve({ onCall, warn }: Pick<InitServiceOptions, 'onCall' | 'warn'>, handlers: Handlers): GrpcServer {
  const error = ({ method, errorId = '', err }: Record<string, unknown>): void =>
    warn(`${String(method)} failed ${String(errorId)}: ${describe(err)}`);
  const edge = rpcEdge({
    logger: { debug: ignore, info: ignore, warn: ignore, error },
    clock: systemClock,
    maxMessageBytes: maxSessionMessageBytes,
  });
  return new GrpcServer(methodsOf(handlers), { edge, maxConcurrentCalls, lingerMs, ...(onCall !== undefined && { onCall }) });
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

function ignore(): void {}

/** Bounds the calls of one kind. */
class CallLimit {
  readonly #what: string;
  readonly #limit: number;
  #running = 0;

  /** @param what completes "N … already" */
  constructor(what: string, limit: number) {
    this.#what = what;
    this.#limit = limit;
  }

  /** @throws {DroverError} no-room */
  async run(call: () => Promise<void>): Promise<void> {
    if (this.#running >= this.#limit) {
      throw new DroverError('no-room', `${this.#limit} ${this.#what} already`, { hint: 'end some of them, or try again later' });
    }
    this.#running++;
    try {
      await call();
    } finally {
      this.#running--;
    }
  }
}

async function logs(call: Call<init.LogsRequest, Reply<'logs'>>, sandbox: Sandbox): Promise<void> {
  let request: init.LogsRequest | undefined;
  for await (const message of call.requests) request = message;
  const entries = readLog({
    directory: sandbox.runDirectory,
    tailLines: Number(request?.tailLines ?? 0n),
    sinceMs: request?.since === undefined ? 0 : timestampMs(request.since),
    writer: sandbox.log,
    ...(request?.follow === true ? { follow: sandbox.log } : {}),
    signal: call.signal,
  });
  for await (const entry of entries) {
    const { stderr, data, time, droppedBytes } = entry;
    await call.send({ stderr, data, time: timestampFromMs(time), droppedBytes: BigInt(droppedBytes) });
  }
}
