import { create } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import { createConnectTransport, Http2SessionManager } from '@connectrpc/connect-node';
import { api, link, sandbox } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { bareClient, type Pems } from '../bare-grpc.ts';
import { Child } from '../children.ts';
import type { BarePorts } from './bare-share-child.ts';

export interface Parts {
  /** From the client's call to the command at the host, ms. */
  readonly command: number;
  /** From the host's report of the start to the request for the session's tunnel at the host, ms. */
  readonly tunnel: number;
}

/**
 * The two ways of a create over the same libraries, with the same messages and mutual TLS where the product has it, and nothing in
 * between: a Connect call whose handler writes the command to the host's stream, and a report whose handler writes the request for a tunnel.
 */
export class BareShare implements AsyncDisposable {
  readonly #child = new Child('create/bare-share-child.ts');
  #asked = Promise.withResolvers<number>();
  #dialled = Promise.withResolvers<number>();
  #sessions: Http2SessionManager | undefined;
  #host: ReturnType<typeof bareClient> | undefined;

  /** @param server and host: their credentials */
  async start(server: Pems, host: Pems): Promise<() => Promise<Parts>> {
    const ports = await this.#child.ask<BarePorts>('start', server);
    this.#host = bareClient(ports.link, host, ({ operation }, call) => {
      if (operation.case === 'openTunnel') return this.#dialled.resolve(performance.now());
      if (operation.case !== 'create') return;
      this.#asked.resolve(performance.now());
      call.write(reportOf(operation.value.sandbox?.sandboxId ?? ''));
    });
    // A stream is only opened when something is sent.
    this.#host.call.write(create(link.HostFrameSchema));
    while ((await this.#child.ask<number>('connected')) === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    const url = `https://127.0.0.1:${ports.api}`;
    const sessionManager = new ReadableSessionManager(url, {}, { ca: server.caPem, checkServerIdentity: () => undefined });
    this.#sessions = sessionManager;
    const transport = createConnectTransport({ baseUrl: url, httpVersion: '2', sessionManager, acceptCompression: [] });
    const client = createClient(api.SandboxService, transport);
    return async () => {
      this.#asked = Promise.withResolvers();
      this.#dialled = Promise.withResolvers();
      const began = performance.now();
      await client.createSandbox({ spec: { image: 'host', command: ['true'] }, name: 'a-name-of-usual-length' });
      const at = await this.#asked.promise;
      return { command: at - began, tunnel: (await this.#dialled.promise) - at };
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#sessions?.abort();
    this.#host?.client.close();
    await this.#child[Symbol.asyncDispose]();
  }
}

function reportOf(sandboxId: string): link.HostFrame {
  const seen = create(sandbox.SandboxObservationSchema, {
    sandboxId,
    generation: 1n,
    state: sandbox.SandboxState.RUNNING,
    startCount: 1n,
    runtime: 'fake',
    address: '10.0.0.2',
    sequence: 1n,
  });
  return create(link.HostFrameSchema, { frame: { case: 'observations', value: create(link.ObservationsSchema, { sandboxes: [seen] }) } });
}
