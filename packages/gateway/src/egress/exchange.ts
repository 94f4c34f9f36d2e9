import { request as httpRequest, type ClientRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { limits } from '../limits.ts';
import { formatHost } from '../policy/index.ts';
import { endToEndHeaders, requestFraming } from './headers.ts';
import type { Target } from './target.ts';

/** Sends a request on and its answer back. Rejects when the server breaks off before its answer began. */
export async function exchange(
  request: IncomingMessage,
  response: ServerResponse,
  target: Target,
  socket: Socket,
  signal: AbortSignal,
): Promise<void> {
  const framing = requestFraming(request.rawHeaders);
  const method = request.method ?? 'GET';
  const host = target.port === 80 ? formatHost(target.host) : `${formatHost(target.host)}:${target.port}`;
  // Host is the target's, whatever the client wrote (RFC 9112, 3.2.2).
  const headers = ['Host', host, ...endToEndHeaders(request.rawHeaders, ['host', 'expect']), 'Via', '1.1 drover'];
  if (framing.kind === 'chunked') headers.push('Transfer-Encoding', 'chunked');
  if (framing.kind === 'none' && ['POST', 'PUT', 'PATCH'].includes(method)) headers.push('Content-Length', '0');
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
    response.once('close', resolve);
    request.on('error', () => upstream.destroy());
    request.pipe(upstream);
  });
}
