import { Notifier, type Clock } from '@drover/foundation';
import { limits } from './limits.ts';

/** A connection to a process, by which its health is known. */
export interface HealthConnection {
  /** Resolves when the process responds: with a reason when it reports itself degraded (S-7). Rejects when it does not respond. */
  ping(signal: AbortSignal): Promise<string | undefined>;
  close(): void;
  /** Resolves when the connection is lost. The process is then probed immediately. */
  readonly lost?: Promise<void>;
}

/** How the health of a process is known (S-2): dial, ping, `onHealthy`, keep pinging. */
export interface Health {
  /** Connects. Called again after each failed ping (S-4). */
  readonly dial: (signal: AbortSignal) => Promise<HealthConnection>;
  /** Called after the first successful ping of each connection. */
  readonly onHealthy?: (connection: HealthConnection) => void;
  readonly everyMs?: number;
}

/** A health check that needs no connection: `probe` rejects when the process does not respond. */
export function probing(probe: (signal: AbortSignal) => Promise<void>, everyMs?: number): Health {
  const ping = async (signal: AbortSignal): Promise<undefined> => {
    await probe(signal);
  };
  return { dial: async () => ({ ping, close: () => undefined }), ...(everyMs !== undefined && { everyMs }) };
}

export type ProbeResult =
  | { readonly type: 'probe-passed'; readonly degraded: string | undefined }
  | { readonly type: 'probe-failed'; readonly error: string };

export interface HealthLoopOptions {
  readonly clock: Clock;
  /** Reports whether the process has been healthy since it started. Until then it is probed more often, since callers wait for it. */
  readonly isReady: () => boolean;
  readonly report: (result: ProbeResult) => void;
}

/** Follows the health of a process until `signal` aborts (S-2 to S-4). Never rejects. */
export async function followHealth(health: Health, options: HealthLoopOptions, signal: AbortSignal): Promise<void> {
  const { clock, isReady, report } = options;
  const everyMs = health.everyMs ?? limits.probeEveryMs;
  const wakeUp = new Notifier(clock);
  let connection: HealthConnection | undefined;
  let lost = false;
  let eagerMs = 0;
  let countedAt = Number.NEGATIVE_INFINITY;
  // S-4: the next probe dials again.
  const drop = (): void => {
    connection?.close();
    connection = undefined;
  };
  const probe = async (): Promise<void> => {
    const limited = AbortSignal.any([signal, AbortSignal.timeout(limits.probeTimeoutMs)]);
    const isNew = connection === undefined;
    const probed = (connection ??= await health.dial(limited));
    const degraded = await probed.ping(limited);
    if (signal.aborted) return;
    lost = false;
    report({ type: 'probe-passed', degraded });
    if (!isNew) return;
    health.onHealthy?.(probed);
    void probed.lost?.then(() => {
      if (connection !== probed) return;
      drop();
      lost = true;
      wakeUp.notify();
    });
  };
  while (!signal.aborted) {
    try {
      await probe();
    } catch (error) {
      drop();
      // The frequent probes before readiness count at the usual pace. After a lost connection each one counts: the process is probably gone.
      const counts = isReady() || lost || clock.now() - countedAt >= everyMs;
      if (counts) countedAt = clock.now();
      if (counts && !signal.aborted) report({ type: 'probe-failed', error: error instanceof Error ? error.message : String(error) });
    }
    const eager = !isReady() || lost;
    eagerMs = eager ? Math.min(limits.maxEagerProbeMs, Math.max(limits.eagerProbeMs, eagerMs * 2)) : 0;
    // Rejects when the signal aborts, which ends the loop.
    await wakeUp.wait(signal, eager ? Math.min(eagerMs, everyMs) : everyMs).catch(() => undefined);
  }
  drop();
}
