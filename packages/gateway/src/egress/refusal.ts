import { STATUS_CODES } from 'node:http';
import { DroverError } from '@drover/foundation';
import { limits } from '../limits.ts';

/** The response to a refused request, for programs and people (G-18). */
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
  /** The rule that decided; "no rule" when none names the destination. */
  readonly rule: string;
  readonly hint: string;
}

/** The rule of a destination that no rule names. */
export const noRule = 'no rule';

/** Refuses a request, with the response to the client. */
export class RefusedError extends DroverError {
  override readonly name = 'RefusedError';
  readonly refusal: Pick<Refusal, 'status' | 'error' | 'rule' | 'hint'>;

  constructor(refusal: Pick<Refusal, 'status' | 'error' | 'rule' | 'hint'>, message: string, cause?: unknown) {
    super('permission-denied', message, { hint: refusal.hint, cause });
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
 * The whole response as bytes, for a connection that Node's HTTP server no longer owns; the connection ends with it. The reason phrase contains the
 * message, since most clients show nothing else of a refused CONNECT.
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

/** One bounded line of visible ASCII (RFC 9112, 4): the host in the message comes from the client. */
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
