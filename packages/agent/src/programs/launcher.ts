import type { Socket } from 'node:net';

export interface LaunchOptions {
  /** The whole environment. Default: this process's, with the administrator's directories in its PATH. */
  readonly env?: Readonly<Record<string, string>>;
  /** Which of its standard streams lead here; the others are /dev/null. */
  readonly streams?: readonly ('stdin' | 'stdout' | 'stderr')[];
  /** Its descriptor 3 is the other end of a socket. */
  readonly channel?: boolean;
}

/** A program of the system's that runs. Its streams are of it alone: closed here, they are at their end there. */
export interface Launched {
  readonly pid: number;
  readonly stdin: Socket | undefined;
  readonly stdout: Socket | undefined;
  readonly stderr: Socket | undefined;
  readonly channel: Socket | undefined;
  /** Its exit code; null when a signal ended it. Its streams may have more to be read. */
  readonly ended: Promise<number | null>;
  /** SIGKILL; ended: nothing. */
  kill(): void;
}

/** A path, arguments without the program's own name, an environment: a way to start it. */
export type Launcher = (
  path: string,
  args: readonly string[],
  options: Omit<LaunchOptions, 'env'> & { readonly env: NodeJS.ProcessEnv },
) => Promise<Launched>;
