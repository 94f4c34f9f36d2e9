import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { init } from '@drover/protocol';
import type { Identity } from './identity/identity.ts';
import { readLog } from './logs/reader.ts';
import type { Sandbox } from './sandbox.ts';
import type { Call, Reply } from './server/call.ts';
import { GrpcServer } from './server/grpc.ts';
import { exec } from './session/exec.ts';
import { session } from './session/session.ts';

/** InitService over one sandbox. Give it connections with `accept`; who may connect is decided before (I-3). */
export function createInitService(sandbox: Sandbox, identity: Identity, onCall: () => void): GrpcServer {
  const workdir = sandbox.config.main.workdir === '' ? '/' : sandbox.config.main.workdir;
  return new GrpcServer(
    {
      session: (call) => session(call, sandbox, identity, onCall),
      exec: (call) => sandbox.attached(() => exec(call, sandbox)),
      logs: (call) => logs(call, sandbox),
      // The three below are loaded when first used: an idle sandbox does not pay for them.
      copyIn: (call) => sandbox.attached(async () => (await import('./files/copy-in.ts')).copyIn(call, workdir)),
      copyOut: (call) => sandbox.attached(async () => (await import('./files/copy-out.ts')).copyOut(call, workdir)),
      forward: (call) => sandbox.attached(async () => (await import('./forward.ts')).forward(call)),
    },
    onCall,
  );
}

async function logs(call: Call<init.LogsRequest, Reply<'logs'>>, sandbox: Sandbox): Promise<void> {
  let request: init.LogsRequest | undefined;
  for await (const message of call.requests) request = message;
  const entries = readLog({
    directory: sandbox.runDirectory,
    tailLines: Number(request?.tailLines ?? 0n),
    ...(request?.follow === true ? { follow: sandbox.log } : {}),
    signal: call.signal,
  });
  for await (const entry of entries) {
    await call.send({ stderr: entry.stderr, data: entry.data, time: timestampFromMs(entry.time) });
  }
}
