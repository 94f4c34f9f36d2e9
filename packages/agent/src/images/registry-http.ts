import { Agent, request, type Dispatcher } from 'undici';
import { Backoff, DroverError, type Clock, errnoOf, reasonOf } from '@drover/foundation';
import {
  maxRedirects,
  maxRegistryAnswerBytes,
  maxRegistryTries,
  maxRetryAfterMs,
  registryConnectMs,
  registrySilenceMs,
} from '../limits.ts';
import { parseChallenges } from './challenge.ts';
import type { Credentials } from './credential-helper.ts';

/** One address of a registry: the registry itself or a mirror of it. */
export interface Endpoint {
  /** `https://host:port`, with a prefix for some mirrors; no slash at its end. */
  readonly base: string;
  /** Whether plain HTTP and certificates that do not verify are permitted (R-11). */
  readonly insecure: boolean;
  readonly credentials: Credentials | undefined;
}

export interface RegistryAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Dispatcher.ResponseData['body'];
}

/**
 * HTTP to one endpoint of a registry, for one repository: authentication (distribution-spec; Docker's token
 * authentication specification), redirects, bounded retries. Lives as long as one pull.
 */
export class RegistryHttp implements AsyncDisposable {
  readonly #endpoint: Endpoint;
  readonly #repository: string;
  readonly #clock: Clock;
  readonly #agent: Agent;
  #authorization: { readonly value: string; readonly until: number } | undefined;
  #authorizing: Promise<void> | undefined;

  constructor(endpoint: Endpoint, repository: string, clock: Clock) {
    this.#endpoint = endpoint;
    this.#repository = repository;
    this.#clock = clock;
    this.#agent = new Agent({
      connect: { timeout: registryConnectMs, rejectUnauthorized: !endpoint.insecure },
      headersTimeout: registrySilenceMs,
      bodyTimeout: registrySilenceMs,
    });
  }

  /** The registry's host, for people. */
  get host(): string {
    return new URL(this.#endpoint.base).host;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent.destroy();
  }

  /**
   * GET of a path below `/v2/<repository>/`. The caller reads or dumps the body.
   * @throws {DroverError} registry-unreachable, registry-denied, image-not-found
   */
  async get(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<RegistryAnswer> {
    const url = new URL(`${this.#endpoint.base}/v2/${this.#repository}/${path}`);
    const backoff = new Backoff({ baseMs: 200, capMs: 5000 });
    let challenged = false;
    for (;;) {
      signal.throwIfAborted();
      let problem: DroverError;
      let waitMs = 0;
      const used = this.#authorization;
      try {
        const answer = await this.#follow(url, headers, signal);
        if (answer.status >= 200 && answer.status < 300) return answer;
        const detail = await readText(answer);
        if (answer.status === 401 && !challenged) {
          challenged = true;
          // What was refused is not tried again, unless another request has got a new one meanwhile.
          if (this.#authorization === used) this.#authorization = undefined;
          await this.#authorize(answer.headers['www-authenticate'] ?? '', signal);
          continue;
        }
        if (answer.status === 401 || answer.status === 403) throw this.#denied(detail);
        if (answer.status === 404) {
          throw new DroverError(
            'image-not-found',
            `the registry ${this.host} has no ${this.#repository} ${path.replace(/^[a-z]+\//, '')}`,
            {
              hint: 'check the name and the tag',
            },
          );
        }
        if (answer.status === 416) {
          throw new DroverError('registry-unreachable', `the registry ${this.host} does not go on with a broken download`);
        }
        if (answer.status !== 429 && answer.status < 500) {
          throw new DroverError('registry-unreachable', `the registry ${this.host} answered with ${answer.status}${detail}`, {
            hint: 'check that it is an OCI registry',
          });
        }
        problem = new DroverError('registry-unreachable', `the registry ${this.host} answered with ${answer.status}${detail}`, {
          hint: answer.status === 429 ? 'it limits how often one may pull; log in, or wait' : 'try again later',
        });
        waitMs = retryAfterMs(answer.headers['retry-after'], this.#clock.now());
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

  /** One request, with its redirects. Authorization goes to the endpoint's own origin only. */
  async #follow(start: URL, headers: Record<string, string>, signal: AbortSignal): Promise<RegistryAnswer> {
    const origin = new URL(this.#endpoint.base).origin;
    let url = start;
    for (let redirects = 0; redirects <= maxRedirects; redirects++) {
      const sent = { ...headers, 'user-agent': 'drover' } as Record<string, string>;
      if (url.origin === origin && this.#authorization !== undefined) sent['authorization'] = this.#authorization.value;
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
        throw new DroverError(
          'registry-unreachable',
          `the registry ${this.host} leads to ${next.protocol}//${next.host}, which is not secure`,
          {
            hint: 'if you trust the way there, use drover image pull --insecure, or drover agent --insecure-registry HOST',
          },
        );
      }
      url = next;
    }
    throw new DroverError('registry-unreachable', `the registry ${this.host} redirects in a circle`, { hint: 'check its configuration' });
  }

  /** Several requests may be challenged at once; one of them asks for the token. */
  async #authorize(header: string, signal: AbortSignal): Promise<void> {
    if (this.#authorization !== undefined && this.#authorization.until > this.#clock.now()) return;
    this.#authorizing ??= this.#askForToken(header, signal).finally(() => {
      this.#authorizing = undefined;
    });
    await this.#authorizing;
  }

  async #askForToken(header: string, signal: AbortSignal): Promise<void> {
    const challenges = parseChallenges(header);
    const { credentials } = this.#endpoint;
    const bearer = challenges.find((c) => c.scheme === 'bearer');
    if (bearer === undefined) {
      if (challenges.some((c) => c.scheme === 'basic') && credentials !== undefined) {
        // A short life: it is sent from the start, and a second 401 is final.
        this.#authorization = { value: basic(credentials), until: this.#clock.now() };
        return;
      }
      throw this.#denied('');
    }
    const realm = bearer.parameters['realm'] ?? '';
    if (!URL.canParse(realm)) throw this.#denied(' (it names no token server)');
    const url = new URL(realm);
    if (url.protocol !== 'https:' && !(url.protocol === 'http:' && this.#endpoint.insecure)) {
      throw this.#denied(' (its token server is not secure)');
    }
    const scope = bearer.parameters['scope'] ?? `repository:${this.#repository}:pull`;
    const service = bearer.parameters['service'];
    const form = new URLSearchParams();
    let answer: Dispatcher.ResponseData;
    try {
      if (credentials?.identityToken !== undefined) {
        form.set('grant_type', 'refresh_token');
        form.set('refresh_token', credentials.identityToken);
        form.set('client_id', 'drover');
        form.set('scope', scope);
        if (service !== undefined) form.set('service', service);
        answer = await request(url, {
          method: 'POST',
          dispatcher: this.#agent,
          signal,
          headers: { 'content-type': 'application/x-www-form-urlencoded', 'user-agent': 'drover' },
          body: form.toString(),
        });
      } else {
        if (service !== undefined) url.searchParams.set('service', service);
        for (const part of scope.split(' ')) url.searchParams.append('scope', part);
        if (credentials !== undefined) url.searchParams.set('account', credentials.username);
        answer = await request(url, {
          dispatcher: this.#agent,
          signal,
          headers: { 'user-agent': 'drover', ...(credentials === undefined ? {} : { authorization: basic(credentials) }) },
        });
      }
    } catch (error) {
      signal.throwIfAborted();
      throw new DroverError(
        'registry-unreachable',
        `the token server ${url.host} of the registry ${this.host} cannot be reached: ${reason(error)}`,
        {
          hint: 'check the network',
          cause: error,
        },
      );
    }
    const text = await readText({ status: answer.statusCode, headers: {}, body: answer.body }, true);
    if (answer.statusCode === 401 || answer.statusCode === 403) throw this.#denied('');
    if (answer.statusCode !== 200) {
      throw new DroverError('registry-unreachable', `the token server ${url.host} answered with ${answer.statusCode}`, {
        hint: 'try again later',
      });
    }
    const token = parseToken(text);
    if (token === undefined)
      throw new DroverError('registry-unreachable', `the token server ${url.host} gave no token`, { hint: 'check its configuration' });
    this.#authorization = { value: `Bearer ${token.token}`, until: this.#clock.now() + token.livesMs };
  }

  #denied(detail: string): DroverError {
    return new DroverError('registry-denied', `the registry ${this.host} does not let us pull ${this.#repository}${detail}`, {
      hint:
        this.#endpoint.credentials === undefined
          ? 'check the name; if it is private, log in with `docker login`, and give the agent the file with --registry-credentials'
          : 'check the name, and the credentials for this registry',
    });
  }

  #unreachable(error: unknown): DroverError {
    if (isPlainHttp(error)) {
      return new DroverError(
        'registry-unreachable',
        `the registry ${this.host} speaks plain HTTP, which anybody on the way can read and change`,
        {
          hint: 'if you trust the way there, use drover image pull --insecure, or drover agent --insecure-registry HOST',
          cause: error,
        },
      );
    }
    const hint = isCertificateProblem(error)
      ? 'give the agent the CA (NODE_EXTRA_CA_CERTS), or permit it with drover image pull --insecure, or drover agent --insecure-registry HOST'
      : 'check the name and the network';
    return new DroverError('registry-unreachable', `the registry ${this.host} cannot be reached: ${reason(error)}`, { hint, cause: error });
  }
}

const basic = ({ username, password }: Credentials): string => `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;

function parseToken(text: string): { token: string; livesMs: number } | undefined {
  try {
    const fields = JSON.parse(text) as Record<string, unknown>;
    const token = fields['token'] ?? fields['access_token'];
    const seconds = typeof fields['expires_in'] === 'number' ? fields['expires_in'] : 60;
    // A token that is a header of its own would smuggle one in.
    if (typeof token !== 'string' || !/^[\x21-\x7e]+$/.test(token)) return undefined;
    return { token, livesMs: Math.max(0, seconds - 5) * 1000 };
  } catch {
    // Not JSON: no token.
    return undefined;
  }
}

function flatten(headers: Dispatcher.ResponseData['headers']): Record<string, string> {
  const flat: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined) flat[name.toLowerCase()] = Array.isArray(value) ? value.join(', ') : value;
  }
  return flat;
}

/** An answer's text; without `whole`, its error messages (distribution-spec, "Error codes"), for people. Bounded. */
async function readText(answer: RegistryAnswer, whole = false): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of answer.body as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > maxRegistryAnswerBytes) break;
  }
  const text = Buffer.concat(chunks).toString('utf8');
  if (whole) return text;
  try {
    const { errors } = JSON.parse(text) as { errors?: { message?: unknown }[] };
    const message = errors?.[0]?.message;
    return typeof message === 'string' ? `: ${message.slice(0, 200).replace(/[^\x20-\x7e]/g, '?')}` : '';
  } catch {
    // An error page, not the registry's own words.
    return '';
  }
}

/** RFC 9110 10.2.3: seconds or a date. */
function retryAfterMs(header: string | undefined, now: number): number {
  if (header === undefined) return 0;
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - now;
  return Number.isFinite(ms) ? Math.min(Math.max(0, ms), maxRetryAfterMs) : 0;
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

export function isCertificateProblem(error: unknown): boolean {
  return /CERT|SELF_SIGNED|UNABLE_TO_|ERR_TLS/.test(codeOf(error));
}

/** TLS was spoken to a server that does not. */
export function isPlainHttp(error: unknown): boolean {
  return codeOf(error) === 'ERR_SSL_WRONG_VERSION_NUMBER' || codeOf(error) === 'ERR_SSL_PACKET_LENGTH_TOO_LONG';
}

function reason(error: unknown): string {
  if (error instanceof AggregateError && error.errors[0] instanceof Error) return reasonOf(error.errors[0]);
  if (error instanceof Error && errnoOf(error) === undefined) return error.message || codeOf(error);
  return reasonOf(error);
}
