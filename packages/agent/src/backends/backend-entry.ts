import type { Logger } from '@drover/foundation';
import type { Finding } from '../finding.ts';
import type { ForeignPaths } from '../foreign/index.ts';
import type { Images } from '../images/index.ts';
import type { Network } from '../network/index.ts';
import type { Backend } from './backend.ts';

/** One backend in the table. */
export interface BackendEntry {
  readonly open: (options: BackendOptions) => Backend;
  /** `Backend.check` for a host without an agent. */
  readonly check: (options: CheckOptions) => Promise<readonly Finding[]>;
}

/** The parts of a host that its backends use. */
export interface BackendOptions extends CheckOptions {
  /** The cgroup of all sandboxes, in each hierarchy: `/drover`. */
  readonly cgroupParent: string;
  readonly images: Images;
  readonly network: Network;
  readonly foreign: ForeignPaths;
  /** Standbys at most; 0: none. */
  readonly standbys: number;
}

export interface CheckOptions {
  readonly stateDirectory: string;
  /** `runc` (default), `crun`, or a path. */
  readonly runtimeProgram?: string;
  readonly logger: Logger;
}
