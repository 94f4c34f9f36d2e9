import type { HostId, Logger } from '@drover/foundation';
import type { link } from '@drover/protocol';
import { pendingObservations } from '../limits.ts';
import type { Store } from '../store/index.ts';
import type { HostLink } from './host-link.ts';
import type { HubListener } from './hub.ts';

/**
 * Takes a link's observations to the store, one transaction at a time; what comes meanwhile is kept per sandbox, the newest
 * only, so that a slow store never holds up heartbeats or results.
 */
export function takeObservations(
  to: { readonly store: Store; readonly logger: Logger; readonly tell: (event: 'observed', hostId: HostId, seen: SeenList) => void },
  from: HostLink,
  frame: link.Observations,
): void {
  const waiting = (from.observed ??= new Map());
  for (const observation of frame.sandboxes) waiting.set(observation.sandboxId, observation);
  if (waiting.size > pendingObservations) from.pause();
  if (!from.storing) void store(to, from);
}

type SeenList = Parameters<NonNullable<HubListener['observed']>>[1];

async function store(to: Parameters<typeof takeObservations>[0], from: HostLink): Promise<void> {
  from.storing = true;
  try {
    while (from.observed !== undefined && !from.ended) {
      const seen = [...from.observed.values()];
      from.observed = undefined;
      from.resume();
      await to.store.sandboxes.observe(from.hostId, from.epoch, seen);
      to.tell('observed', from.hostId, seen);
    }
  } catch (error) {
    // The next registration reports everything again (L-6): ending the stream is how what was lost here is repeated.
    to.logger.error({ err: error, hostId: from.hostId }, 'observations could not be stored');
    from.end('its observations could not be stored');
  } finally {
    from.storing = false;
  }
}
