import { timestampMs } from '@bufbuild/protobuf/wkt';
import { clip, isSandboxId, type Clock, type Logger } from '@drover/foundation';
import type { link } from '@drover/protocol';
import { hostEventsPerFrame } from '@drover/spec';
import type { EventDraft } from '../events/index.ts';
import { hostEventsPerSandboxHour, maxEgressTextLength, maxLimitTextLength, maxProcessNameLength, pendingHostEvents } from '../limits.ts';
import type { SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';
import type { HostLink } from './host-link.ts';

/** The stored form of an event that a host reports; undefined for an unknown event of a newer agent. */
function eventOf({ project, name, id }: SandboxRow, { event, at }: link.HostEvent): EventDraft | undefined {
  const common = { project, name, ...(at !== undefined && { at: timestampMs(at) }) };
  switch (event.case) {
    case 'egressDenied': {
      const { port, count } = event.value;
      const [host, method, rule] = [event.value.host, event.value.method, event.value.rule].map((text) => clip(text, maxEgressTextLength));
      return { kind: 'network', type: 'EgressDenied', subject: id, data: { ...common, host, port, method, rule, count } };
    }
    case 'oomKill': {
      const { process, count } = event.value;
      return {
        kind: 'sandbox',
        type: 'SandboxOomKill',
        subject: id,
        data: { ...common, process: clip(process, maxProcessNameLength), count },
      };
    }
    case 'limitReached': {
      const [resource, message] = [event.value.resource, event.value.message].map((text) => clip(text, maxLimitTextLength));
      return { kind: 'sandbox', type: 'SandboxLimitReached', subject: id, data: { ...common, resource, message } };
    }
    default:
      return undefined;
  }
}

/**
 * Stores the events that a host reports for its own sandboxes, and drops events for others. Events that arrive while the store is busy wait
 * in a bounded queue, which drops the oldest: a host that reports without end must not exhaust memory or delay other hosts.
 */
export function storeHostEvents(
  to: { readonly store: Pick<Store, 'sandboxes' | 'events'>; readonly logger: Logger; readonly clock: Pick<Clock, 'now'> },
  from: HostLink,
  { events, dropped }: link.HostEvents,
): void {
  const waiting = from.hostEvents;
  waiting.push(...events.slice(-hostEventsPerFrame));
  const excess = Math.max(0, waiting.length - pendingHostEvents);
  waiting.splice(0, excess);
  const lost = dropped + excess + Math.max(0, events.length - hostEventsPerFrame);
  if (lost > 0) to.logger.warn({ hostId: from.hostId, lost }, 'too many events of a host: some were dropped');
  // Without an event the loop would end before its promise is assigned, and no later event would start it again.
  if (waiting.length > 0) from.storingEvents ??= storeAll(to, from);
}

/** Uses up one event of the sandbox's hourly budget. @returns false if the budget is spent */
function useBudget({ eventBudgets }: HostLink, sandboxId: string, now: number): boolean {
  let budget = eventBudgets.get(sandboxId);
  if (budget === undefined || budget.until <= now) {
    for (const [id, { until }] of eventBudgets) if (until <= now) eventBudgets.delete(id);
    budget = { left: hostEventsPerSandboxHour, until: now + 3_600_000 };
    eventBudgets.set(sandboxId, budget);
  }
  return budget.left-- > 0;
}

async function storeAll({ store, logger, clock }: Parameters<typeof storeHostEvents>[0], from: HostLink): Promise<void> {
  while (from.hostEvents.length > 0) {
    const batch = from.hostEvents.splice(0);
    try {
      const rows = new Map<string, SandboxRow | undefined>();
      for (const { sandboxId } of batch) {
        if (rows.has(sandboxId) || !isSandboxId(sandboxId)) continue;
        const row = await store.sandboxes.get(sandboxId);
        rows.set(sandboxId, row?.hostId === from.hostId ? row : undefined);
      }
      const drafts = batch.flatMap((event) => {
        const row = rows.get(event.sandboxId);
        const draft = row === undefined ? undefined : eventOf(row, event);
        return draft === undefined ? [] : [draft];
      });
      const within = drafts.filter(({ subject }) => useBudget(from, subject, clock.now()));
      if (within.length < drafts.length)
        logger.warn(
          { hostId: from.hostId, lost: drafts.length - within.length },
          'events were dropped: their sandboxes exceed the hourly limit',
        );
      await store.events.append(within);
    } catch (error) {
      logger.error({ err: error, hostId: from.hostId, lost: batch.length }, 'events of a host could not be stored');
    }
  }
  from.storingEvents = undefined;
}
