/** A whole control plane in a process of its own, so that it can be measured, and killed. Argument: its data directory. */
import { flushCompileCache } from 'node:module';
import { startControlPlane } from '@drover/control-plane';
import { silentLogger } from '@drover/foundation/log';
import { answerParent, memoryAfterGc } from './children.ts';

export interface Address {
  readonly server: string;
  readonly link: string;
  readonly token: string;
  readonly caPem: string;
}

const dataDirectory = process.argv[2] ?? '';

answerParent({
  start: async (): Promise<Address> => {
    const listen = { host: '127.0.0.1', port: 0 };
    const plane = await startControlPlane({ dataDirectory, listen, linkListen: listen, logger: silentLogger });
    // As a start that was not killed leaves it for the next one.
    flushCompileCache();
    return { server: plane.address, link: plane.linkAddress, token: plane.adminToken, caPem: plane.caPem };
  },
  memory: memoryAfterGc,
});
