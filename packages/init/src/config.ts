/**
 * The agent writes it into the run directory before it starts init: `/.drover/run/config.json`, mode 0400, read once.
 * Agent and init come from the same release; `version` guards against a mix.
 */
export interface InitConfig {
  readonly version: 1;
  readonly sandboxId: string;
  readonly hostname: string;
  /** URI SAN of the one peer that may connect (I-3). */
  readonly controlPlaneUri: string;
  /** Where init registers (I-13): the host's listener for the control plane's sandbox-facing API. Absent: init cannot register. */
  readonly control?: { readonly host: string; readonly port: number };
  /** Claimed by Register, beside the certificate. */
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
  /** Files for `secretsDirectory`, a tmpfs that the runtime has mounted. Secrets of the environment are in `main.env`. */
  readonly secrets?: readonly SecretFile[];
  /** The sandbox is stopped after this long without use. Milliseconds; absent: never. */
  readonly idleStopMs?: number;
}

export interface SecretFile {
  /** A file name, without slashes. */
  readonly name: string;
  /** Base64. */
  readonly value: string;
}

/** The directory of secrets that are files. */
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
  /** False: the main process has no stdin. */
  readonly stdin: boolean;
  /** The number of the signal that asks it to end. */
  readonly stopSignal: number;
}

/** Init writes it just before it exits: `/.drover/run/exit.json`. The sandbox can write it too, so it is not trusted. */
export interface ExitRecord {
  readonly code: number;
  readonly signal: string;
  /** Milliseconds since the epoch. */
  readonly at: number;
  /** The kernel killed the main process, or its last child, because the sandbox had no memory left. */
  readonly outOfMemory: boolean;
  /** `main-exited`, `stopped`, `idle`, `start-failed`. */
  readonly reason: string;
  /** For start-failed: why the main process could not be started. */
  readonly message: string;
}

/**
 * In init's environment: a descriptor whose end of file means that the run directory is complete. Absent: it is complete. Init can so start
 * while its certificate is still being signed.
 */
export const gateVariable = 'DROVER_GATE';

/**
 * In init's environment, beside the gate: init is a standby, started before its sandbox is requested. While it waits it does a warm-up run
 * (see warm-up.ts), and reports it by `standbyFile` in the run directory.
 */
export const standbyVariable = 'DROVER_STANDBY';
/** Empty. A standby creates it when its gate may open; the host removes it. */
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
  /** Bytes of output over both streams before this record, since this start of the sandbox. Absent in records of earlier releases. */
  readonly o?: number;
}
