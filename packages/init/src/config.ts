/**
 * What the agent writes into the run directory before it starts init: `/.drover/run/config.json`, mode 0400, read once.
 * Agent and init come from the same release; `version` guards against a mix.
 */
export interface InitConfig {
  readonly version: 1;
  readonly sandboxId: string;
  readonly hostname: string;
  /** URI SAN of the one peer that may connect (I-3). */
  readonly controlPlaneUri: string;
  /** Where init registers (I-13): the host's end of the way to the control plane's sandbox-facing listener. Absent: it cannot be asked to. */
  readonly control?: { readonly host: string; readonly port: number };
  /** What Register claims, beside the certificate. */
  readonly project: string;
  readonly name: string;
  /** PEM files beside the config: `ca.pem`, `cert.pem`, `key.pem`; and `token`, the single-use bootstrap token. */
  readonly listen: {
    readonly host: string;
    readonly port: number;
    /** The host's address: connections from any other are closed. */
    readonly peer: string;
  };
  readonly main: MainProcess;
  /** Milliseconds between SIGTERM and SIGKILL at stop. */
  readonly stopGraceMs: number;
  /** Rises with every start of the sandbox. */
  readonly startCount: number;
  /** Files to make in `secretsDirectory`, which the runtime has mounted a tmpfs on. Secrets of the environment are in `main.env`. */
  readonly secrets?: readonly SecretFile[];
  /** The sandbox is stopped when idle for so long. Milliseconds; absent: never. */
  readonly idleStopMs?: number;
}

export interface SecretFile {
  /** A file name, without slashes. */
  readonly name: string;
  /** Base64. */
  readonly value: string;
}

/** Where secrets that are files are. */
export const secretsDirectory = '/run/secrets';

export interface MainProcess {
  readonly argv: readonly string[];
  readonly env: readonly string[];
  readonly workdir: string;
  /** As in the image or the spec: `uid`, `name`, `uid:gid`, …; resolved by init in the sandbox's passwd and group. Empty: root. */
  readonly user: string;
  readonly terminal: boolean;
  readonly rows: number;
  readonly columns: number;
  /** False closes the main process's stdin at once. */
  readonly stdin: boolean;
  /** The number of the signal that asks it to end. */
  readonly stopSignal: number;
}

/** What init writes just before it exits: `/.drover/run/exit.json`. Written by the sandbox, so read with care. */
export interface ExitRecord {
  readonly code: number;
  readonly signal: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  /** The kernel killed the main process, or its last child, because the sandbox had no memory left. */
  readonly outOfMemory: boolean;
  /** `main-exited`, `stopped`, `idle`, `start-failed`. */
  readonly reason: string;
  /** Set for start-failed: why the main process could not be started. */
  readonly message: string;
}

/**
 * In init's environment: the descriptor that is at its end once the run directory is complete; absent: it is. Init is so started while its
 * certificate is still being signed.
 */
export const gateVariable = 'DROVER_GATE';

/**
 * In init's environment, beside the gate: init is a standby, started before anybody asked for its sandbox. While it waits it rehearses a start
 * (see rehearsal.ts), and says by `standbyFile` in the run directory that it has.
 */
export const standbyVariable = 'DROVER_STANDBY';
/** Empty. A standby writes it once its gate may open; the host takes it away. */
export const standbyFile = 'standby';

/** The port that init listens on inside the sandbox. */
export const initPort = 9180;
/** Kept log of the main process: `/.drover/run/log`, then `log.1`; each line a JSON LogLine. */
export const logFile = 'log';
export const maxLogBytes = 8 * 1024 * 1024;

/** One record of the kept log. `d` is base64. */
export interface LogLine {
  /** 1 stdout, 2 stderr. */
  readonly s: 1 | 2;
  /** Milliseconds since the epoch. */
  readonly t: number;
  readonly d: string;
  /** Bytes of output over both streams before this record, since this start of the sandbox. Absent in those of earlier releases. */
  readonly o?: number;
}
