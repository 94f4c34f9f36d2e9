import { Agent, request, type Dispatcher } from 'undici';
import { Backoff, DroverError, type Clock } from '@drover/foundation';
import {
  maxRedirects,
  maxRegistryAnswerBytes,
  maxRegistryTries,
  maxRetryAfterMs,
  registryConnectMs,
  registrySilenceMs,
} from '../../limits.ts';
import { RegistryAuthorization } from './registry-authorization.ts';
import { codeOf, hostOf, networkReason, readText, type Endpoint } from './registry-endpoint.ts';

export interface RegistryResponse {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Dispatcher.ResponseData['body'];
}

/**
 * HTTP to one endpoint of a registry, for one repository (distribution-spec): authentication, redirects, bounded retries. Lives as long as one
 * pull. undici's own interceptors do not fit: its redirects cannot be refused by protocol, and its retries resume bodies, which
 * BlobStore does across restarts of the agent.
 */
export class RegistryClient implements AsyncDisposable {
  readonly #endpoint: Endpoint;
  readonly #repository: string;
  readonly #clock: Clock;
  readonly #agent: Agent;
  readonly #authorization: RegistryAuthorization;

  constructor(endpoint: Endpoint, repository: string, clock: Clock) {
    this.#endpoint = endpoint;
    this.#repository = repository;
    this.#clock = clock;
    this.#agent = new Agent({
      connect: { timeout: registryConnectMs, rejectUnauthorized: !endpoint.insecure },
      headersTimeout: registrySilenceMs,
      bodyTimeout: registrySilenceMs,
    });
    this.#authorization = new RegistryAuthorization(endpoint, repository, this.#agent, clock);
  }

  /** The registry's host, for people. */
  get host(): string {
    return hostOf(this.#endpoint);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent.destroy();
  }

  /**
   * GET of a path below `/v2/<repository>/`. The caller reads or dumps the body.
   * @throws {DroverError} registry-unreachable, registry-denied, image-not-found
   */
  async get(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<RegistryResponse> {
    const url = new URL(`${this.#endpoint.base}/v2/${this.#repository}/${path}`);
    const backoff = new Backoff({ baseMs: 200, capMs: 5000 });
    let isChallenged = false;
    for (;;) {
      signal.throwIfAborted();
      let problem: DroverError;
      let waitMs = 0;
      const used = this.#authorization.current;
      try {
        const response = await this.#follow(url, headers, signal);
        if (response.status >= 200 && response.status < 300) return response;
        const detail = errorDetail(await readText(response.body as AsyncIterable<Buffer>));
        if (response.status === 401 && !isChallenged) {
          isChallenged = true;
          await this.#authorization.renew(used, response.headers['www-authenticate'] ?? '', signal);
          continue;
        }
        problem = this.#problem(response.status, path, detail);
        if (response.status !== 429 && response.status < 500) throw problem;
        waitMs = retryAfterMs(response.headers['retry-after'], this.#clock.now());
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof DroverError) throw error;
        problem = this.#unreachable(error);
        if (isCertificateProblem(error)) throw problem;
      }
      if (backoff.attempts >= maxRegistryTries - 1) throw problem;
      await this.#clock.sleep(Math.max(waitMs, backoff.nextMs()), signal);
    }
  }

  #problem(status: number, path: string, detail: string): DroverError {
    if (status === 401 || status === 403) return this.#authorization.denied(detail);
    if (status === 404) {
      const name = `${this.#repository} ${path.replace(/^[a-z]+\//, '')}`;
      return new DroverError('image-not-found', `the registry ${this.host} has no ${name}`, { hint: 'check the name and the tag' });
    }
    if (status === 416) {
      return new DroverError('registry-unreachable', `the registry ${this.host} does not resume an interrupted download`);
    }
    const hint =
      status === 429
        ? 'it limits how often one may pull; log in, or wait'
        : status >= 500
          ? 'try again later'
          : 'check that it is an OCI registry';
    return new DroverError('registry-unreachable', `the registry ${this.host} answered with ${status}${detail}`, { hint });
  }

  /** One request, with its redirects. Authorization goes to the endpoint's own origin only. */
  async #follow(start: URL, headers: Record<string, string>, signal: AbortSignal): Promise<RegistryResponse> {
    const { origin } = new URL(this.#endpoint.base);
    let url = start;
    for (let redirects = 0; redirects <= maxRedirects; redirects++) {
      const authorization = url.origin === origin ? this.#authorization.current?.value : undefined;
      const sent = { ...headers, 'user-agent': 'drover', ...(authorization !== undefined && { authorization }) };
      const response = await request(url, { dispatcher: this.#agent, headers: sent, signal });
      const flat = flatten(response.headers);
      if (![301, 302, 303, 307, 308].includes(response.statusCode)) {
        return { status: response.statusCode, headers: flat, body: response.body };
      }
      await response.body.dump({ limit: maxRegistryAnswerBytes });
      const location = flat['location'];
      if (location === undefined || !URL.canParse(location, url)) break;
      const next = new URL(location, url);
      if (next.protocol !== 'https:' && !(next.protocol === 'http:' && (url.protocol === 'http:' || this.#endpoint.insecure))) {
        const target = `${next.protocol}//${next.host}`;
        throw new DroverError('registry-unreachable', `the registry ${this.host} redirects to ${target}, which is not secure`, {
          hint: insecureHint,
        });
      }
      url = next;
    }
    throw new DroverError('registry-unreachable', `the registry ${this.host} redirects in a circle`, { hint: 'check its configuration' });
  }

  #unreachable(cause: unknown): DroverError {
    if (isPlainHttp(cause)) {
      const message = `the registry ${this.host} speaks plain HTTP, which anyone on the network path can read and change`;
      return new DroverError('registry-unreachable', message, { hint: insecureHint, cause });
    }
    const hint = isCertificateProblem(cause)
      ? 'give the agent the CA (NODE_EXTRA_CA_CERTS), or permit it with drover image pull --insecure, or drover agent --insecure-registry HOST'
      : 'check the name and the network';
    return new DroverError('registry-unreachable', `the registry ${this.host} cannot be reached: ${networkReason(cause)}`, { hint, cause });
  }
}

const insecureHint = 'if you trust the network path, use drover image pull --insecure, or drover agent --insecure-registry HOST';

function flatten(headers: Dispatcher.ResponseData['headers']): Record<string, string> {
  const flat: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined) flat[name.toLowerCase()] = Array.isArray(value) ? value.join(', ') : value;
  }
  return flat;
}

/** The message of an error response (distribution-spec, "Error codes"), for people. */
function errorDetail(text: string): string {
  try {
    const { errors } = JSON.parse(text) as { errors?: { message?: unknown }[] };
    const message = errors?.[0]?.message;
    return typeof message === 'string' ? `: ${message.slice(0, 200).replace(/[^\x20-\x7e]/g, '?')}` : '';
  } catch {
    // An error page of something before the registry.
    return '';
  }
}

/** RFC 9110 10.2.3: seconds or a date. */
function retryAfterMs(header: string | undefined, now: number): number {
  if (header === undefined) return 0;
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - now;
  return Number.isFinite(ms) ? Math.min(Math.max(0, ms), maxRetryAfterMs) : 0;
}

function isCertificateProblem(error: unknown): boolean {
  return /CERT|SELF_SIGNED|UNABLE_TO_|ERR_TLS/.test(codeOf(error));
}

/** TLS met a server without it. */
function isPlainHttp(error: unknown): boolean {
  return codeOf(error) === 'ERR_SSL_WRONG_VERSION_NUMBER' || codeOf(error) === 'ERR_SSL_PACKET_LENGTH_TOO_LONG';
}
