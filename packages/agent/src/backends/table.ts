import { join } from 'node:path';
import { systemClock, type Logger } from '@drover/foundation';
import { initBundlePath, ptyAddonPath } from '@drover/init';
import type { ForeignPaths } from '../foreign/index.ts';
import type { Images } from '../images/index.ts';
import type { Network } from '../network/index.ts';
import { OciRuntime, prepareInitDirectory } from '../runtimes/index.ts';
import type { Finding } from '../finding.ts';
import type { Backend } from './backend.ts';
import { OciBackend } from './oci/index.ts';
import { withStandbys } from './standbys.ts';

/** The parts of a host that its backends use. */
export interface BackendOptions {
  readonly stateDirectory: string;
  /** The cgroup of all sandboxes, in each hierarchy: `/drover`. */
  readonly cgroupParent: string;
  readonly images: Images;
  readonly network: Network;
  readonly foreign: ForeignPaths;
  /** `runc` (default), `crun`, or a path. */
  readonly runtimeProgram?: string;
  /** Standbys at most; 0: none. */
  readonly standbys: number;
  readonly logger: Logger;
}

interface BackendEntry {
  readonly open: (options: BackendOptions) => Backend;
  /** The same as `Backend.check`, on a host without an agent. */
  readonly check: (options: CheckOptions) => Promise<readonly Finding[]>;
}

export type CheckOptions = Pick<BackendOptions, 'stateDirectory' | 'runtimeProgram' | 'logger'>;

/** The backends of a host; the first is the default. */
const backends: readonly BackendEntry[] = [
  { open: openOci, check: async (options) => await openOciRuntime({ ...options, cgroupParent: '/drover' }).check() },
];

export function openBackends(options: BackendOptions): readonly Backend[] {
  return backends.map(({ open }) => open(options));
}

export async function checkBackends(options: CheckOptions): Promise<readonly Finding[]> {
  return (await Promise.all(backends.map(async ({ check }) => await check(options)))).flat();
}

function openOci(options: BackendOptions): Backend {
  const { stateDirectory, logger, standbys: most } = options;
  const runtime = openOciRuntime(options);
  const init = { nodePath: process.execPath, bundlePath: initBundlePath(), addonPath: ptyAddonPath() };
  const prepareInit = async (): Promise<string> => await prepareInitDirectory(join(stateDirectory, 'init'), init);
  const backend = new OciBackend({ ...options, runtime, prepareInit });
  return most > 0 && runtime.standBy !== undefined ? withStandbys(backend, { most, clock: systemClock, logger }) : backend;
}

function openOciRuntime(options: CheckOptions & Pick<BackendOptions, 'cgroupParent'> & { readonly foreign?: ForeignPaths }): OciRuntime {
  const { stateDirectory, cgroupParent, foreign, logger, runtimeProgram: program } = options;
  const given = { ...(foreign !== undefined && { foreign }), ...(program !== undefined && { program }) };
  return new OciRuntime({ stateDirectory, cgroupParent, logger, ...given });
}
