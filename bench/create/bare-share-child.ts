/** What a create takes with nothing behind the transports, in a process of its own: a Connect server and a bare gRPC server. */
import { once } from 'node:events';
import { createSecureServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { create } from '@bufbuild/protobuf';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { api, link } from '@drover/protocol';
import { BareServer, type Pems } from '../bare-grpc.ts';
import { answerParent } from '../children.ts';

export interface BarePorts {
  readonly api: number;
  readonly link: number;
}

const host = new BareServer();
let last = 0;
/** As long as the hub's own ids. */
const nextId = (): string => `cmd-${String(++last).padStart(28, '0')}`;

function command(operation: link.Command['operation']): void {
  const [stream] = host.streams;
  stream?.write(
    create(link.ControlFrameSchema, { frame: { case: 'command', value: create(link.CommandSchema, { id: nextId(), operation }) } }),
  );
}

host.onFrame = ({ frame }) => {
  if (frame.case !== 'observations') return;
  const [seen] = frame.value.sandboxes;
  const value = create(link.OpenTunnelSchema, {
    tunnelId: nextId(),
    sandboxId: seen?.sandboxId ?? '',
    target: { case: 'init', value: true },
  });
  command({ case: 'openTunnel', value });
};

answerParent({
  start: async (pems: Pems): Promise<BarePorts> => {
    const handler = connectNodeAdapter({
      acceptCompression: [],
      routes: (router) => {
        router.service(api.SandboxService, {
          createSandbox: ({ spec, project, name }) => {
            const sandboxId = nextId();
            const sandbox = { sandboxId, generation: 1n };
            command({ case: 'create', value: create(link.CreateSandboxSchema, { sandbox, project, name, ...(spec && { spec }) }) });
            return create(api.SandboxSchema, { id: sandboxId, project, name, ...(spec && { spec }) });
          },
        });
      },
    });
    const server = createSecureServer({ cert: pems.certificatePem, key: pems.keyPem, minVersion: 'TLSv1.3' }, handler);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return { api: (server.address() as AddressInfo).port, link: await host.listen(pems) };
  },
  connected: () => host.streams.size,
});
