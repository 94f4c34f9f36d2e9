import type { DroverError } from '@drover/foundation';
import type { DroverClient } from '@drover/sdk';
import type { ConnectionFlags } from '../cli.ts';
import { loadContext } from './context.ts';

/**
 * Creates a client. The first call connects.
 * @param onWait called before each retry of a call
 */
export async function connect(
  env: NodeJS.ProcessEnv,
  flags: ConnectionFlags,
  onWait?: (error: DroverError) => void,
): Promise<DroverClient> {
  const context = await loadContext(env, flags);
  const { connectDrover } = await import('@drover/sdk');
  return await connectDrover({ ...context, ...(onWait !== undefined && { onWait }) });
}
