import { request as httpRequest, type ClientRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { formatHost } from '@drover/spec/policy';
import { limits } from '../limits.ts';
import { endToEndHeaders, requestFraming } from './headers.ts';
import type { Target } from './target.ts';
import { tunnel } from './tunnel.ts';

/** The client's connection of a request for another protocol, and the bytes after the request's head. */
export interface UpgradeStream {
  readonly socket: Socket;
  readonly head: Buffer;
}

/**
 * Forwards a request, and returns its response to the client. With `upgrade`, the server may switch protocols, and the connections are joined.
 * Rejects when the server ends the connection before its response begins.
 */
export async function exchange(
  request: IncomingMessage,
  response: ServerResponse,
  target: Target,
  socket: Socket,
  signal: AbortSignal,
  upgrade?: UpgradeStream,
): Promise<void> {
  const framing = requestFraming(request.rawHeaders);
  const method = request.method ?? 'GET';
  const host = target.port === 80 ? formatHost(target.host) : `${formatHost(target.host)}:${target.port}`;
  // Host is that of the target, not the client's field (RFC 9112, 3.2.2).
  const headers = ['Host', host, ...endToEndHeaders(request.rawHeaders, ['host', 'expect']), 'Via', '1.1 drover'];
  if (framing.kind === 'chunked') headers.push('Transfer-Encoding', 'chunked');
  if (framing.kind === 'none' && ['POST', 'PUT', 'PATCH'].includes(method)) headers.push('Content-Length', '0');
  const protocol = request.headers.upgrade;
  if (upgrade !== undefined && protocol !== undefined) headers.push('Connection', 'Upgrade', 'Upgrade', protocol);
  await new Promise<void>((resolve, reject) => {
    const upstream: ClientRequest = httpRequest({
      createConnection: () => socket,
      method,
      path: target.path,
      headers,
      setHost: false,
      maxHeaderSize: limits.headBytes,
      insecureHTTPParser: false,
    });
    socket.setTimeout(limits.idleMs, () => socket.destroy());
    signal.addEventListener('abort', () => upstream.destroy(), { once: true });
    upstream.once('error', (error) => {
      if (response.headersSent) response.destroy();
      reject(error);
    });
    upstream.once('response', (answer) => {
      response.sendDate = false;
      response.writeHead(answer.statusCode ?? 502, answer.statusMessage ?? '', endToEndHeaders(answer.rawHeaders));
      // Server-sent events and long polls begin before their first byte of body.
      response.flushHeaders();
      answer.on('error', () => response.destroy());
      answer.pipe(response);
    });
    upstream.once('upgrade', (answer, server, head) => {
      if (upgrade === undefined) {
        server.destroy();
        reject(new Error('the server switched protocols without a request for it'));
        return;
      }
      response.detachSocket(upgrade.socket);
      upgrade.socket.write(switchingProtocols(answer));
      if (head.length > 0) upgrade.socket.write(head);
      void tunnel(upgrade.socket, server, upgrade.head).then(() => resolve());
    });
    response.once('close', resolve);
    request.on('error', () => upstream.destroy());
    request.pipe(upstream);
  });
}

/** The head of a 101 response: the server's end-to-end fields, and the hop-by-hop ones of this connection. */
function switchingProtocols(answer: IncomingMessage): string {
  const fields = [...endToEndHeaders(answer.rawHeaders), 'Connection', 'Upgrade', 'Upgrade', answer.headers.upgrade ?? ''];
  const lines = fields.flatMap((name, i) => (i % 2 === 0 ? [`${name}: ${fields[i + 1] ?? ''}`] : []));
  return `HTTP/1.1 101 Switching Protocols\r\n${lines.join('\r\n')}\r\n\r\n`;
}
