import { STATUS_CODES } from 'node:http';
import { limits } from '../limits.ts';

/** What a client gets instead of its answer: readable by a program and by a person (G-18). */
export interface Refusal {
  readonly status: number;
  readonly error:
    | 'egress-denied'
    | 'bad-request'
    | 'name-not-resolved'
    | 'upstream-unreachable'
    | 'upstream-failed'
    | 'too-busy'
    | 'timed-out';
  readonly message: string;
  readonly sandbox: string;
  readonly host: string;
  readonly port: number;
  readonly method: string;
  /** Which rule decided; "no rule" when none names the destination. */
  readonly rule: string;
  readonly hint: string;
}

/** Where no rule names the destination. */
export const noRule = 'no rule';

/** Thrown on the way to a destination; carries what the client is told. */
export class RefusedError extends Error {
  override readonly name = 'RefusedError';
  readonly refusal: Pick<Refusal, 'status' | 'error' | 'rule' | 'hint'>;

  constructor(refusal: Pick<Refusal, 'status' | 'error' | 'rule' | 'hint'>, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.refusal = refusal;
  }
}

export function denied(rule: string, host: string, port: number): RefusedError {
  const target = port === 80 || port === 443 ? host : `${host}:${port}`;
  const hint =
    rule === noRule
      ? `ask the person who runs this sandbox to allow it: --allow ${target}`
      : rule.startsWith('deny ')
        ? 'a rule of its policy denies it'
        : 'private addresses open only by a rule that names them, such as --allow 10.1.2.3:8080; the host itself never opens';
  return new RefusedError({ status: 403, error: 'egress-denied', rule, hint }, `this sandbox may not reach ${host}:${port} (${rule})`);
}

export function badRequest(message: string): RefusedError {
  return new RefusedError(
    { status: 400, error: 'bad-request', rule: 'no rule', hint: 'use this address as an HTTP proxy (http_proxy, https_proxy)' },
    message,
  );
}

/**
 * The whole response as bytes, for a client whose connection Node's HTTP server has let go of; the connection ends with it.
 * The reason phrase carries the message, because it is all that most clients show of a refused CONNECT.
 */
export function refusalBytes(refusal: Refusal): Buffer {
  const body = refusalBody(refusal);
  const head = [
    `HTTP/1.1 ${refusal.status} ${reasonPhrase(refusal)}`,
    ...Object.entries(refusalHeaders(body)).map(([name, value]) => `${name}: ${value}`),
    'connection: close',
  ];
  return Buffer.concat([Buffer.from(`${head.join('\r\n')}\r\n\r\n`), body]);
}

/** Visible ASCII on one line (RFC 9112, 4), bounded: the host in the message comes from the client. */
function reasonPhrase({ status, message, hint }: Refusal): string {
  const text = status === 403 ? `${message}; ${hint}` : message;
  const phrase = text.replaceAll(/[^\u0020-\u007e]+/g, ' ').slice(0, limits.reasonPhraseLength);
  return phrase === '' ? (STATUS_CODES[status] ?? 'Refused') : phrase;
}

export function refusalBody(refusal: Refusal): Buffer {
  const { status: _, ...body } = refusal;
  return Buffer.from(`${JSON.stringify(body)}\n`);
}

export function refusalHeaders(body: Buffer): Record<string, string> {
  return { 'content-type': 'application/json', 'content-length': String(body.length), 'cache-control': 'no-store' };
}
