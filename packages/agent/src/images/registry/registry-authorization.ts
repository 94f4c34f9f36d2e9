import { request, type Agent, type Dispatcher } from 'undici';
import { DroverError, type Clock } from '@drover/foundation';
import { parseChallenges } from './challenge.ts';
import type { Credentials } from './credential-helper.ts';
import { hostOf, networkReason, readText, type Endpoint } from './registry-endpoint.ts';

interface Authorization {
  /** Of the header. */
  readonly value: string;
  readonly until: number;
}

/** Authorizes requests for one repository of one endpoint (Docker's token authentication specification). */
export class RegistryAuthorization {
  readonly #endpoint: Endpoint;
  readonly #repository: string;
  readonly #agent: Agent;
  readonly #clock: Clock;
  #current: Authorization | undefined;
  #renewing: Promise<void> | undefined;

  constructor(endpoint: Endpoint, repository: string, agent: Agent, clock: Clock) {
    this.#endpoint = endpoint;
    this.#repository = repository;
    this.#agent = agent;
    this.#clock = clock;
  }

  get current(): Authorization | undefined {
    return this.#current;
  }

  /**
   * Answers a 401. Concurrent requests may be challenged; one of them requests the token.
   * @param refused what the request carried
   * @throws {DroverError} registry-denied, registry-unreachable
   */
  async renew(refused: Authorization | undefined, challenge: string, signal: AbortSignal): Promise<void> {
    // Not repeated, unless another request has received a new one meanwhile.
    if (this.#current === refused) this.#current = undefined;
    if (this.#current !== undefined && this.#current.until > this.#clock.now()) return;
    this.#renewing ??= this.#request(challenge, signal).finally(() => (this.#renewing = undefined));
    await this.#renewing;
  }

  denied(detail = ''): DroverError {
    return new DroverError('registry-denied', `the registry ${hostOf(this.#endpoint)} refuses the pull of ${this.#repository}${detail}`, {
      hint:
        this.#endpoint.credentials === undefined
          ? 'check the name; if it is private, log in with `docker login`, and give the agent the file with --registry-credentials'
          : 'check the name, and the credentials for this registry',
    });
  }

  async #request(header: string, signal: AbortSignal): Promise<void> {
    const challenges = parseChallenges(header);
    const { credentials } = this.#endpoint;
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer');
    if (bearer === undefined) {
      if (credentials === undefined || !challenges.some(({ scheme }) => scheme === 'basic')) throw this.denied();
      // Expires immediately: it is sent from now on, and a second 401 is final.
      this.#current = { value: basic(credentials), until: this.#clock.now() };
      return;
    }
    const { realm = '', service, scope = `repository:${this.#repository}:pull` } = bearer.parameters;
    if (!URL.canParse(realm)) throw this.denied(' (it names no token server)');
    const url = new URL(realm);
    if (url.protocol !== 'https:' && !(url.protocol === 'http:' && this.#endpoint.insecure)) {
      throw this.denied(' (its token server is not secure)');
    }
    const { statusCode, body } = await this.#query(url, service, scope, signal);
    const text = await readText(body);
    if (statusCode === 401 || statusCode === 403) throw this.denied();
    const failed = (what: string, hint: string): DroverError =>
      new DroverError('registry-unreachable', `the token server ${url.host} ${what}`, { hint });
    if (statusCode !== 200) throw failed(`responded with ${statusCode}`, 'try again later');
    const token = parseToken(text);
    if (token === undefined) throw failed('returned no token', 'check its configuration');
    this.#current = { value: `Bearer ${token.token}`, until: this.#clock.now() + token.livesMs };
  }

  async #query(url: URL, service: string | undefined, scope: string, signal: AbortSignal): Promise<Dispatcher.ResponseData> {
    const { credentials } = this.#endpoint;
    const common = { dispatcher: this.#agent, signal };
    const headers = { 'user-agent': 'drover' };
    try {
      if (credentials?.identityToken !== undefined) {
        const form = new URLSearchParams({
          grant_type: 'refresh_token',
          refresh_token: credentials.identityToken,
          client_id: 'drover',
          scope,
        });
        if (service !== undefined) form.set('service', service);
        const type = { 'content-type': 'application/x-www-form-urlencoded' };
        return await request(url, { ...common, method: 'POST', headers: { ...headers, ...type }, body: form.toString() });
      }
      if (service !== undefined) url.searchParams.set('service', service);
      for (const part of scope.split(' ')) url.searchParams.append('scope', part);
      if (credentials === undefined) return await request(url, { ...common, headers });
      url.searchParams.set('account', credentials.username);
      return await request(url, { ...common, headers: { ...headers, authorization: basic(credentials) } });
    } catch (error) {
      signal.throwIfAborted();
      const message = `the token server ${url.host} of the registry ${hostOf(this.#endpoint)} cannot be reached: ${networkReason(error)}`;
      throw new DroverError('registry-unreachable', message, { hint: 'check the network', cause: error });
    }
  }
}

const basic = ({ username, password }: Credentials): string => `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;

function parseToken(text: string): { readonly token: string; readonly livesMs: number } | undefined {
  try {
    const fields = JSON.parse(text) as Record<string, unknown>;
    const token = fields['token'] ?? fields['access_token'];
    const seconds = typeof fields['expires_in'] === 'number' ? fields['expires_in'] : 60;
    // A line break in a token would add a header.
    if (typeof token !== 'string' || !/^[\x21-\x7e]+$/.test(token)) return undefined;
    return { token, livesMs: Math.max(0, seconds - 5) * 1000 };
  } catch {
    // Not JSON.
    return undefined;
  }
}
