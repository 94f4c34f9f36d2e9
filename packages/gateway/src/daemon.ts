import type { Logger } from '@drover/foundation';
import type { DaemonSpec, ListenAddress } from '@drover/supervisor';

/** The user that a daemon becomes when its code is loaded. */
export interface RunAs {
  readonly uid: number;
  readonly gid: number;
}

/** Where the daemons of a gateway listen. */
export interface GatewayAddresses {
  /** Path of the control socket, which only the agent can open. */
  readonly controlSocket: string;
  readonly proxies: readonly { readonly host: string; readonly port: number }[];
}

/** The environment of a daemon, in its own process. */
export interface DaemonContext {
  /** The descriptors that the supervisor passed, by name. */
  readonly sockets: ReadonlyMap<string, readonly number[]>;
  /** Holds what must survive a restart of this daemon; gone with the supervisor. Undefined when the daemon runs without one. */
  readonly stateFd: number | undefined;
  readonly logger: Logger;
  /** The daemon's lifetime. */
  readonly signal: AbortSignal;
  /** Call it when everything listens: drops root, and reports to the supervisor that the daemon is ready. */
  readonly ready: () => void;
}

/** One row of the table of daemons: what the supervisor knows without loading the daemon. */
export interface GatewayDaemon {
  readonly name: string;
  /** The listening sockets that it is passed, by name. */
  readonly sockets: (addresses: GatewayAddresses) => readonly { readonly name: string; readonly at: ListenAddress }[];
  /** Beside PATH and DROVER_LOG (G-11). */
  readonly env: Readonly<Record<string, string>>;
  readonly policy: NonNullable<DaemonSpec['policy']>;
  /** Restarts the daemon (G-8). */
  readonly restartSignal?: NodeJS.Signals;
  /** Runs it until its signal aborts. Loads its code. */
  readonly run: (context: DaemonContext) => Promise<void>;
}
