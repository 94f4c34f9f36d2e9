/** Bare HTTP/2 over mutual TLS, node:http2 alone: a server, or clients that hold one open stream each; in a process of its own. */
import { connect, createSecureServer, type ClientHttp2Session, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { once } from 'node:events';
import { answerParent, memoryAfterGc } from '../children.ts';
import type { Pems } from '../bare-grpc.ts';

const held: (ClientHttp2Session | ServerHttp2Session)[] = [];

async function dial(port: number, { certificatePem: cert, keyPem: key, caPem: ca }: Pems): Promise<number> {
  const began = performance.now();
  const session = connect(`https://localhost:${port}`, { cert, key, ca, minVersion: 'TLSv1.3', checkServerIdentity: () => undefined });
  held.push(session);
  const stream = session.request({ ':method': 'POST', ':path': '/' }, { endStream: false });
  stream.write('hello');
  await once(stream, 'data');
  return performance.now() - began;
}

answerParent({
  listen: async ({ certificatePem: cert, keyPem: key, caPem: ca }: Pems) => {
    const server = createSecureServer({ cert, key, ca, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' });
    server.on('session', (session) => held.push(session));
    server.on('stream', (stream: ServerHttp2Stream) => {
      stream.respond({ ':status': 200 });
      stream.on('data', (data: Buffer) => stream.write(data));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return (server.address() as AddressInfo).port;
  },
  dial: async ({ port, pems, count, atOnce }: { port: number; pems: Pems; count: number; atOnce: number }) => {
    const took: number[] = [];
    for (let at = 0; at < count; at += atOnce) {
      took.push(...(await Promise.all(Array.from({ length: Math.min(atOnce, count - at) }, async () => await dial(port, pems)))));
    }
    return took;
  },
  memory: memoryAfterGc,
});
