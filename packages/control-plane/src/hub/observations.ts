import type { HostId, Logger } from '@drover/foundation';
import type { sandbox } from '@drover/protocol';
import { pendingObservations } from '../limits.ts';
import type { Store } from '../store/index.ts';
import type { HostLink } from './host-link.ts';
import { isObservation, type Observation } from './hub.ts';

export interface ObservationSink {
  readonly store: Pick<Store, 'sandboxes'>;
  readonly logger: Logger;
  /** The store holds these observations of the host. */
  readonly stored: (hostId: HostId, observations: readonly Observation[]) => void;
}

/**
 * Stores a host's observations, one transaction at a time. During a transaction the newest observation of each sandbox waits, so a slow
 * store delays neither heartbeats nor results.
 */
export function storeObservations(to: ObservationSink, from: HostLink, observations: readonly sandbox.SandboxObservation[]): void {
  const waiting = (from.observed ??= new Map());
  for (const observation of observations) if (isObservation(observation)) waiting.set(observation.sandboxId, observation);
  if (waiting.size > pendingObservations) from.pause();
  if (!from.storing) void store(to, from);
}

async function store({ store: { sandboxes }, logger, stored }: ObservationSink, from: HostLink): Promise<void> {
  from.storing = true;
  try {
    while (from.observed !== undefined && !from.ended) {
      const observations = [...from.observed.values()];
      from.observed = undefined;
      from.resume();
      await sandboxes.observe(from.hostId, from.epoch, observations);
      stored(from.hostId, observations);
    }
  } catch (error) {
    // End the stream: the next registration reports every sandbox again (L-6), and so replaces the lost observations.
    logger.error({ err: error, hostId: from.hostId }, 'observations could not be stored');
    from.end('its observations could not be stored');
  } finally {
    from.storing = false;
  }
}
