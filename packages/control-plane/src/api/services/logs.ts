import type { MessageInitShape } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { Backoff, DroverError, hasCode } from '@drover/foundation';
import { fromConnectError, link, LogPosition, type api, type KeptOutput } from '@drover/protocol';
import { initSilenceMs, reattachBaseMs, reattachCapMs, reattachMs } from '../../limits.ts';
import { sandboxState, type SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { ended, hostLogs, peerIsForeign, inTime, silentError, foreignPeerError, refuseDownHost, sessionClient } from '../reach/index.ts';

/**
 * Output of the main process: from init while it runs, from the host when it does not or cannot be reached. Following goes on
 * over breaks of the session until the process has ended.
 */
export function logsMethod(context: ApiContext): ServiceImpl<typeof api.SandboxService>['logs'] {
  return async function* logs(request, { signal }) {
    const first = await context.store.sandboxes.find(request.sandbox);
    const position = new LogPosition();
    const backoff = new Backoff({ baseMs: reattachBaseMs, capMs: reattachCapMs });
    let brokenSince: number | undefined;
    let tail = request.tailLines;
    const since = request.since === undefined ? {} : { since: request.since };
    for (;;) {
      position.begin();
      const row = (await context.store.sandboxes.get(first.id)) ?? first;
      const running = sandboxState(row).state === 'running';
      if (!running && (!request.follow || ended(row))) {
        for await (const output of fromHost(context, row, { tailLines: tail, ...since }, signal)) yield* position.fresh([output]);
        return;
      }
      if (!running) {
        // It has not begun, or is paused or lost: its next state decides.
        await context.feed.until(
          row.id,
          async () => {
            const now = await context.store.sandboxes.get(row.id);
            return now === undefined || ended(now) || sandboxState(now).state === 'running' ? true : undefined;
          },
          signal,
        );
        continue;
      }
      let error: DroverError;
      const call = new AbortController();
      const either = AbortSignal.any([signal, call.signal]);
      try {
        const client = await sessionClient(context, row, signal);
        const wanted = { follow: request.follow, tailLines: tail, ...since };
        // A followed process may be quiet for as long as it likes.
        const limitMs = request.follow ? undefined : initSilenceMs;
        const late = (ms: number): DroverError => silentError(row, 'reading of its log', ms);
        for await (const chunk of inTime(client.logs(wanted, { signal: either }), context.clock, () => limitMs, late)) {
          brokenSince = undefined;
          backoff.reset();
          yield* position.fresh([chunk]);
        }
        return;
      } catch (thrown) {
        // What the host keeps can be read without init; only to follow needs it.
        if (request.follow && peerIsForeign(thrown)) throw foreignPeerError(row, thrown);
        error = peerIsForeign(thrown) ? foreignPeerError(row, thrown) : fromConnectError(thrown);
      } finally {
        call.abort();
      }
      signal.throwIfAborted();
      if (hasCode(error, 'invalid-argument', 'unimplemented', 'permission-denied')) throw error;
      await refuseDownHost(context, row);
      // What was handed out is skipped by its time, so the next try asks for everything that is kept.
      if (!position.atStart) tail = 0n;
      if (!request.follow) {
        position.begin();
        for await (const output of fromHost(context, row, { tailLines: tail, ...since }, signal)) yield* position.fresh([output]);
        return;
      }
      brokenSince ??= context.clock.now();
      if (context.clock.now() - brokenSince > reattachMs) throw error;
      await context.clock.sleep(backoff.nextMs(), signal);
    }
  };
}

async function* fromHost(
  context: ApiContext,
  row: SandboxRow,
  wanted: MessageInitShape<typeof link.HostLogsSchema>,
  signal: AbortSignal,
): AsyncGenerator<KeptOutput, void, undefined> {
  for await (const { stream, data, time, droppedBytes } of hostLogs(context, row, wanted, signal))
    yield { stderr: stream === link.LogRecord_Stream.STDERR, data, time, droppedBytes };
}
