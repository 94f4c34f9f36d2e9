import { link, methodDefinition } from '@drover/protocol';
import { create } from '@bufbuild/protobuf';
import { Client, credentials, Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import type { ClientDuplexStream } from '@grpc/grpc-js';

/** grpc-js with nothing of ours but the frames: the same method, mutual TLS 1.3, and whatever comes is answered at once. */
export const method = methodDefinition(link.HostLinkService.method.connect);

export interface Pems {
  readonly caPem: string;
  readonly certificatePem: string;
  readonly keyPem: string;
}

/** A server that says how many streams it holds, and answers each of `result` frames with the next command. */
export class BareServer {
  readonly #server = new Server({ 'grpc.enable_channelz': 0 });
  readonly streams = new Set<ServerDuplexStream<link.HostFrame, link.ControlFrame>>();
  onFrame: (frame: link.HostFrame) => void = () => undefined;

  constructor() {
    this.#server.addService(
      { connect: method },
      {
        connect: (call: ServerDuplexStream<link.HostFrame, link.ControlFrame>) => {
          this.streams.add(call);
          call.on('data', (frame: link.HostFrame) => this.onFrame(frame));
          const gone = (): void => void this.streams.delete(call);
          call.on('error', gone).on('close', gone).on('cancelled', gone);
          call.on('end', () => call.end());
        },
      },
    );
  }

  async listen({ caPem, certificatePem, keyPem }: Pems, port = 0): Promise<number> {
    const tls = ServerCredentials.createSsl(
      Buffer.from(caPem),
      [{ cert_chain: Buffer.from(certificatePem), private_key: Buffer.from(keyPem) }],
      true,
    );
    return await new Promise((resolve, reject) => {
      this.#server.bindAsync(`127.0.0.1:${port}`, tls, (error, bound) => (error === null ? resolve(bound) : reject(error)));
    });
  }

  close(): void {
    this.#server.forceShutdown();
  }
}

/** A client that does this with each command; by default it answers with an empty result, as a host does that has nothing to do. */
export function bareClient(
  port: number,
  { caPem, certificatePem, keyPem }: Pems,
  onCommand: (command: link.Command, call: BareCall) => void = answerEmpty,
): { readonly client: Client; readonly call: BareCall } {
  const tls = credentials.createSsl(Buffer.from(caPem), Buffer.from(keyPem), Buffer.from(certificatePem), {
    checkServerIdentity: () => undefined,
  });
  const client = new Client(`localhost:${port}`, tls, { 'grpc.use_local_subchannel_pool': 1, 'grpc.enable_channelz': 0 });
  const call = client.makeBidiStreamRequest(method.path, method.requestSerialize, method.responseDeserialize);
  call.on('error', () => undefined);
  call.on('data', ({ frame }: link.ControlFrame) => {
    if (frame.case === 'command') onCommand(frame.value, call);
  });
  return { client, call };
}

function answerEmpty({ id }: link.Command, call: BareCall): void {
  const value = create(link.CommandResultSchema, { commandId: id });
  call.write(create(link.HostFrameSchema, { frame: { case: 'result', value } }));
}

export type BareCall = ClientDuplexStream<link.HostFrame, link.ControlFrame>;
