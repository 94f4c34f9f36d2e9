import { createClient, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport, type Http2SessionManager } from '@connectrpc/connect-node';
import { systemClock, type DroverError } from '@drover/foundation';
import { api } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { Calls } from './calls.ts';
import { fromApiError, isDateError } from './errors.ts';
import { eventsApi, type EventsApi } from './events.ts';
import { hostsApi, type HostsApi } from './hosts.ts';
import { identitiesApi, type IdentitiesApi } from './identities.ts';
import { imagesApi, type ImagesApi } from './images.ts';
import { maxMessageBytes, pingIntervalMs, pingTimeoutMs } from './limits.ts';
import { sandboxesApi, type SandboxesApi } from './sandboxes.ts';
import { clockError, fetchCaByFingerprint, parseServer, trustOnly } from './tls.ts';
import { volumesApi, type VolumesApi } from './volumes.ts';
import { worldviewApi, type WorldviewApi } from './worldview.ts';

export interface ConnectOptions {
  /** `https://host:port`. */
  readonly server: string;
  readonly token: string;
  /** Trusts exactly this CA, PEM. */
  readonly caPem?: string;
  /** Trusts exactly the CA with this SHA-256 (hex), which is fetched from the server. Ignored with `caPem`. Neither: the system's CAs. */
  readonly caFingerprint?: string;
  /** Called before each wait for the repetition of a call that did not reach the control plane. */
  readonly onWait?: (error: DroverError) => void;
}

/**
 * Makes a client. It connects to the server only to fetch a CA by its fingerprint.
 * @throws {DroverError} ca-mismatch, control-plane-unreachable, invalid-argument
 */
export async function connectDrover(options: ConnectOptions): Promise<DroverClient> {
  const { caFingerprint, ...rest } = options;
  if (rest.caPem !== undefined || caFingerprint === undefined) return new DroverClient(rest);
  return new DroverClient({ ...rest, caPem: await fetchCaByFingerprint(rest.server, caFingerprint) });
}

/** A client of one server, over one HTTP/2 connection that is opened when it is needed. Every method rejects with a DroverError. */
export class DroverClient {
  readonly sandboxes: SandboxesApi;
  readonly hosts: HostsApi;
  readonly images: ImagesApi;
  readonly volumes: VolumesApi;
  readonly events: EventsApi;
  readonly identities: IdentitiesApi;
  readonly worldview: WorldviewApi;
  readonly #version: (signal: AbortSignal | undefined) => Promise<api.Version>;
  readonly #sessions: Http2SessionManager;

  /** @throws {DroverError} invalid-argument when `server` is not an https address */
  constructor(options: Omit<ConnectOptions, 'caFingerprint'>) {
    const url = parseServer(options.server);
    const tls = options.caPem === undefined ? {} : trustOnly(options.caPem);
    this.#sessions = new ReadableSessionManager(url.origin, { pingIntervalMs, pingTimeoutMs }, tls);
    const authorize: Interceptor = (next) => async (request) => {
      request.header.set('authorization', `Bearer ${options.token}`);
      return await next(request);
    };
    const explainDates: Interceptor = (next) => async (request) => {
      try {
        return await next(request);
      } catch (thrown) {
        const error = fromApiError(thrown, url.host);
        throw isDateError(error) ? await clockError(url, error) : thrown;
      }
    };
    const transport = createConnectTransport({
      baseUrl: url.origin,
      httpVersion: '2',
      sessionManager: this.#sessions,
      interceptors: [authorize, explainDates],
      acceptCompression: [],
      readMaxBytes: maxMessageBytes,
    });
    const calls = new Calls(url.host, systemClock, options.onWait);
    this.hosts = hostsApi(createClient(api.HostService, transport), calls);
    this.images = imagesApi(createClient(api.ImageService, transport), calls);
    this.volumes = volumesApi(createClient(api.VolumeService, transport), calls);
    const events = createClient(api.EventService, transport);
    this.events = eventsApi(events, calls);
    this.sandboxes = sandboxesApi(createClient(api.SandboxService, transport), calls, this.events);
    this.worldview = worldviewApi(events, calls);
    this.identities = identitiesApi(createClient(api.IdentityService, transport), calls);
    const system = createClient(api.SystemService, transport);
    this.#version = (signal) => calls.ask((options) => system.getVersion({}, options), signal);
  }

  version(signal?: AbortSignal): Promise<api.Version> {
    return this.#version(signal);
  }

  /** Ends the connection and every stream on it. */
  close(): void {
    this.#sessions.abort();
  }
}
