import { connect as connectHttp2, type ClientHttp2Session } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { create, fromBinary, toBinary, toJsonString, type MessageInitShape } from '@bufbuild/protobuf';
import { control } from '@drover/protocol';

/** Calls without a client library, to check the bytes on the wire. */

type Method = keyof (typeof control.ControlService)['method'];

const path = (method: Method): string => `/${control.ControlService.typeName}/${control.ControlService.method[method].name}`;

export interface Http1Answer {
  readonly status: number;
  /** Every byte received on the connection, including status line and headers. */
  readonly raw: string;
  readonly body: string;
}

/** Everything received until the connection ends or is cut. */
export async function drain(socket: TLSSocket): Promise<string> {
  const parts: Buffer[] = [];
  socket.on('data', (part: Buffer) => parts.push(part));
  socket.on('error', () => undefined);
  // Not `once(socket, …)`, which would throw the error that cut the connection.
  if (!socket.closed) await new Promise((resolve) => socket.once('close', resolve));
  return Buffer.concat(parts).toString('latin1');
}

/** A Connect call over HTTP/1.1 with JSON, on its own connection. */
export async function http1(
  socket: TLSSocket,
  method: Method,
  options: { readonly token?: string; readonly body?: string; readonly headers?: readonly string[] } = {},
): Promise<Http1Answer> {
  const body = options.body ?? '{}';
  const lines = [
    `POST ${path(method)} HTTP/1.1`,
    'Host: control',
    'Content-Type: application/json',
    `Content-Length: ${Buffer.byteLength(body)}`,
    'Connection: close',
    ...(options.token === undefined ? [] : [`Authorization: Bearer ${options.token}`]),
    ...(options.headers ?? []),
  ];
  const answered = drain(socket);
  socket.write(`${lines.join('\r\n')}\r\n\r\n${body}`);
  const raw = await answered;
  return { status: Number(raw.split(' ')[1]), raw, body: raw.slice(raw.indexOf('\r\n\r\n') + 4) };
}

export const registerJson = (request: MessageInitShape<typeof control.RegisterRequestSchema>): string =>
  toJsonString(control.RegisterRequestSchema, create(control.RegisterRequestSchema, request));

export interface Http2Answer {
  /** Names and values as received, in order. */
  readonly headers: readonly string[];
  readonly trailers: readonly string[];
  readonly body: Buffer;
  readonly resetCode: number;
}

export function http2(socket: TLSSocket): ClientHttp2Session {
  const session = connectHttp2('https://control', { createConnection: () => socket });
  session.on('error', () => undefined);
  return session;
}

/** Makes one request over HTTP/2, and returns the whole response. */
export async function http2Request(
  session: ClientHttp2Session,
  headers: Record<string, string>,
  body: Uint8Array | undefined,
): Promise<Http2Answer> {
  const stream = session.request({ ':method': 'POST', ...headers }, { endStream: body === undefined });
  let answered: readonly string[] = [];
  let trailers: readonly string[] = [];
  const parts: Buffer[] = [];
  stream.on('response', (_headers, _flags, raw) => (answered = raw));
  stream.on('trailers', (_headers, _flags, raw) => (trailers = raw));
  stream.on('data', (part: Buffer) => parts.push(part));
  stream.on('error', () => undefined);
  if (body !== undefined) stream.end(body);
  // Not `once(stream, …)`, which would throw the error of a reset.
  await new Promise((resolve) => stream.once('close', resolve));
  return { headers: answered, trailers, body: Buffer.concat(parts), resetCode: stream.rstCode };
}

const bearer = (token: string | undefined): Record<string, string> => (token === undefined ? {} : { authorization: `Bearer ${token}` });

export async function connectCall(session: ClientHttp2Session, method: Method, body: Uint8Array, token?: string): Promise<Http2Answer> {
  return await http2Request(session, { ':path': path(method), 'content-type': 'application/proto', ...bearer(token) }, body);
}

/** gRPC's framing: no compression, the length, the message. */
export async function grpcCall(session: ClientHttp2Session, method: Method, body: Uint8Array, token?: string): Promise<Http2Answer> {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(body.length, 1);
  const headers = { ':path': path(method), 'content-type': 'application/grpc', te: 'trailers', ...bearer(token) };
  return await http2Request(session, headers, Buffer.concat([head, body]));
}

export const registerBytes = (request: MessageInitShape<typeof control.RegisterRequestSchema>): Uint8Array =>
  toBinary(control.RegisterRequestSchema, create(control.RegisterRequestSchema, request));

/** The access token in a response in Connect's binary form. */
export const accessTokenOf = (answer: Http2Answer): string => fromBinary(control.RegisterResponseSchema, answer.body).accessToken;
