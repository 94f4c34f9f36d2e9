import type { ServiceImpl } from '@connectrpc/connect';
import { Backoff, DroverError, hasCode } from '@drover/foundation';
import { link, LogPosition, type api } from '@drover/protocol';
import { fromConnectError } from '@drover/protocol/rpc';
import { initSilenceMs, reattachBaseMs, reattachCapMs, reattachMs } from '../../limits.ts';
import { sandboxState, type SandboxRow } from '../../model/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { foreignPeerError, hasEnded, hostLogs, inTime, peerIsForeign, refuseDownHost, sessionClient, silentError } from '../reach/index.ts';

/**
 * The output of the main process: from init while it runs, and from its host when init does not run or cannot be reached. A follower is served
 * through breaks of the session, until the process has ended.
 */
export function logsMethod(context: ApiContext): ServiceImpl<typeof api.SandboxService>['logs'] {
  return async function* logs(request, { signal }) {
    const row = await context.store.sandboxes.find(request.sandbox);
    yield* new LogRelay(context, row, request, signal).run();
  };
}

class LogRelay {
  readonly #context: ApiContext;
  readonly #row: SandboxRow;
  readonly #request: api.LogsRequest;
  readonly #signal: AbortSignal;
  readonly #position = new LogPosition();
  readonly #backoff = new Backoff({ baseMs: reattachBaseMs, capMs: reattachCapMs });
  #brokenSince: number | undefined;

  constructor(context: ApiContext, row: SandboxRow, request: api.LogsRequest, signal: AbortSignal) {
    this.#context = context;
    this.#row = row;
    this.#request = request;
    this.#signal = signal;
  }

  async *run(): AsyncGenerator<api.LogChunk, void, undefined> {
    const { follow } = this.#request;
    for (;;) {
      const row = (await this.#context.store.sandboxes.get(this.#row.id)) ?? this.#row;
      if (sandboxState(row).state !== 'running') {
        if (!follow || hasEnded(row)) return yield* this.#fromHost(row);
        await this.#untilRunning();
        continue;
      }
      let error: DroverError;
      try {
        return yield* this.#fromInit(row);
      } catch (thrown) {
        const isForeign = peerIsForeign(thrown);
        error = isForeign ? foreignPeerError(row, thrown) : fromConnectError(thrown);
        // The host's copy can be read without init; only a follower needs init.
        if (follow && isForeign) throw error;
      }
      this.#signal.throwIfAborted();
      if (hasCode(error, 'invalid-argument', 'unimplemented', 'permission-denied')) throw error;
      await refuseDownHost(this.#context, row);
      if (!follow) return yield* this.#fromHost(row);
      await this.#pause(error);
    }
  }

  /** What to read. Output that was delivered is skipped by its time, so a later read asks for everything that is retained. */
  get #range(): { readonly tailLines: bigint; readonly since?: NonNullable<api.LogsRequest['since']> } {
    const { tailLines, since } = this.#request;
    return { tailLines: this.#position.atStart ? tailLines : 0n, ...(since !== undefined && { since }) };
  }

  async *#fromHost(row: SandboxRow): AsyncGenerator<api.LogChunk, void, undefined> {
    this.#position.begin();
    for await (const { stream, data, time, droppedBytes } of hostLogs(this.#context, row, this.#range, this.#signal)) {
      yield* this.#position.fresh([{ stderr: stream === link.LogRecord_Stream.STDERR, data, time, droppedBytes }]);
    }
  }

  async *#fromInit(row: SandboxRow): AsyncGenerator<api.LogChunk, void, undefined> {
    const { follow } = this.#request;
    const call = new AbortController();
    try {
      const client = await sessionClient(this.#context, row, this.#signal);
      this.#position.begin();
      const chunks = client.logs({ follow, ...this.#range }, { signal: AbortSignal.any([this.#signal, call.signal]) });
      const late = (ms: number): DroverError => silentError(row, 'reading of its log', ms);
      // A followed process may be silent for any time.
      for await (const chunk of inTime(chunks, this.#context.clock, () => (follow ? undefined : initSilenceMs), late)) {
        this.#brokenSince = undefined;
        this.#backoff.reset();
        yield* this.#position.fresh([chunk]);
      }
    } finally {
      call.abort();
    }
  }

  /** Its command has not begun, or it is paused or lost: its next state decides. */
  async #untilRunning(): Promise<void> {
    const { store, feed } = this.#context;
    const look = async (): Promise<true | undefined> => {
      const row = await store.sandboxes.get(this.#row.id);
      return row === undefined || hasEnded(row) || sandboxState(row).state === 'running' ? true : undefined;
    };
    await feed.until(this.#row.id, look, this.#signal);
  }

  /** @throws `error` after `reattachMs` without output */
  async #pause(error: DroverError): Promise<void> {
    const { clock } = this.#context;
    this.#brokenSince ??= clock.now();
    if (clock.now() - this.#brokenSince > reattachMs) throw error;
    await clock.sleep(this.#backoff.nextMs(), this.#signal);
  }
}
