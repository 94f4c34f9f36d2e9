import type { Clock, Logger } from '@drover/foundation';

export interface ControlPlaneOptions {
  /** Holds the CA, the admin's token and, without `store`, the database. One server at a time. */
  readonly dataDirectory: string;
  /** `postgres://…`, or a path; default `<dataDirectory>/drover.db`. */
  readonly store?: string;
  /** Port 0 selects the port of the last start, or a free one. */
  readonly listen: ListenAddress;
  readonly linkListen: ListenAddress;
  /** The name or address under which hosts and clients reach this server; default the address that it listens on. */
  readonly publicHost?: string;
  /** More names and addresses for the certificates. */
  readonly dnsNames?: readonly string[];
  readonly ipAddresses?: readonly string[];
  /** Default `drover`. Fixed at the first start. */
  readonly trustDomain?: string;
  /** A host silent for this long is down (L-10), ms; it beats three times as often. Default 30 s. */
  readonly hostTtlMs?: number;
  /** A host down for this long makes its sandboxes lost (L-26), ms. Default 60 s. */
  readonly lostGraceMs?: number;
  /** How the previous server ended, if the service manager reports it: a signal's name or an exit status. */
  readonly lastEnd?: string;
  readonly logger: Logger;
  readonly clock?: Clock;
  /** Stops the server, as `close` does. */
  readonly signal?: AbortSignal;
}

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

export interface ControlPlane {
  /** `https://host:port` of the API. */
  readonly address: string;
  /** `host:port` of the host link. */
  readonly linkAddress: string;
  readonly caPem: string;
  /** SHA-256, lower-case hex. */
  readonly caFingerprint: string;
  readonly adminToken: string;
  /** Stops accepting, asks the hosts to reconnect later, ends the sessions, closes the store. Sandboxes keep running. */
  close(): Promise<void>;
}
