import { join } from 'node:path';
import { systemClock } from '@drover/foundation';
import { initBundlePath, ptyAddonPath } from '@drover/init';
import type { BackendEntry, CheckOptions } from '../backend-entry.ts';
import { withStandbys } from '../standbys.ts';
import { checkHost } from './check.ts';
import { prepareInitDirectory } from './init-directory.ts';
import { OciBackend } from './oci-backend.ts';
import { OciHost, type OciHostOptions } from './oci-host.ts';

export const oci: BackendEntry = {
  open: (options) => {
    const { stateDirectory, logger, standbys: most } = options;
    const init = { nodePath: process.execPath, bundlePath: initBundlePath(), addonPath: ptyAddonPath() };
    const prepareInit = async (): Promise<string> => await prepareInitDirectory(join(stateDirectory, 'init'), init);
    const backend = new OciBackend({ ...options, ...programOf(options), prepareInit });
    return most > 0 ? withStandbys(backend, { most, clock: systemClock, logger }) : backend;
  },
  check: async (options) => await checkHost(new OciHost({ ...options, ...programOf(options), cgroupParent: '/drover' })),
};

function programOf({ runtimeProgram: program }: CheckOptions): Pick<OciHostOptions, 'program'> {
  return program === undefined ? {} : { program };
}
