import type { DroverClient } from '@drover/sdk';
import type { ConnectionFlags } from '../cli.ts';
import { loadContext } from './context.ts';

/** Connects lazily: the first call finds out whether anybody answers. */
export async function connect(env: NodeJS.ProcessEnv, flags: ConnectionFlags): Promise<{ client: DroverClient; server: string }> {
  const context = await loadContext(env, flags);
  const { connectDrover } = await import('@drover/sdk');
  return { client: await connectDrover(context), server: context.server };
}
