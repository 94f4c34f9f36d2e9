import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { abortable, clip, DroverError, version, type SandboxId } from '@drover/foundation';
import type { init } from '@drover/protocol';
import type { StepFailure } from '../events/index.ts';
import { endReportMs } from '../limits.ts';
import { startOf, type SandboxRow } from '../model/index.ts';
import type { InitView, SandboxView } from '../worldview/index.ts';
import { Admission } from './admission.ts';
import {
  SessionStream,
  StreamLost,
  type Connection,
  type Decision,
  type PeerVerdict,
  type SessionEnd,
  type Untrusted,
} from './connection/index.ts';
import type { SessionContext } from './context.ts';
import { declareStartFailed } from './failed-start.ts';
import { executePlan, requestReady, stepNames, type PlanStep } from './plan/index.ts';
import type { StartHistory } from './policy/index.ts';
import { renewCertificates, type RenewedPeer } from './renewal.ts';

export interface SessionOptions {
  readonly row: SandboxRow;
  readonly connection: Connection;
  readonly verdict: PeerVerdict;
  readonly history: StartHistory;
  /** HelloAck arrived. */
  readonly greeted: (ack: init.HelloAck) => void;
  /** A frame with an unknown id was dropped (I-33). */
  readonly dropped: () => void;
  /** The plan has ended, or was declared failed. */
  readonly settled: () => void;
}

/** The session of one connection, until it ends: Hello, admission, the plan, renewal. */
export class Session {
  readonly #context: SessionContext;
  readonly #options: SessionOptions;
  readonly #id: SandboxId;
  readonly #startCount: number;
  readonly #stream: SessionStream;
  readonly #admission: Admission;
  /** An intended end. */
  readonly #ending: AbortSignal;
  readonly #finished = new AbortController();
  readonly #peer: Pick<RenewedPeer, 'thumbprint'>;
  #trusted = false;

  constructor(context: SessionContext, options: SessionOptions, signal: AbortSignal) {
    this.#context = context;
    this.#options = options;
    this.#ending = signal;
    this.#id = options.row.id;
    this.#startCount = startOf(options.row);
    this.#peer = { thumbprint: options.verdict.thumbprint };
    this.#stream = new SessionStream(options.connection.client, {
      received: () => {
        if (this.#trusted) context.registry.seen(this.#id, this.#peer.thumbprint);
      },
      dropped: options.dropped,
      logger: context.logger.child({ sandbox: this.#id }),
    });
    this.#admission = new Admission(context, { id: this.#id, startCount: this.#startCount, verdict: options.verdict }, this.#stream);
  }

  /** The thumbprint under which the peer is trusted; undefined while it is not. */
  get trustedAs(): string | undefined {
    return this.#trusted ? this.#peer.thumbprint : undefined;
  }

  /** @throws the error that broke it: of the stream, or of this side (I-26) */
  async run(): Promise<SessionEnd> {
    const signal = AbortSignal.any([this.#ending, this.#finished.signal, this.#options.connection.lost]);
    const { worldview, logger, plans } = this.#context;
    const [decision, before, steps] = await abortable(
      Promise.all([
        this.#admission.assess(),
        worldview.get(this.#id).catch((error: unknown) => {
          logger.warn({ sandbox: this.#id, err: error }, 'the view of a sandbox could not be read');
          return undefined;
        }),
        plans(this.#options.row).catch((error: unknown) => DroverError.from(error)),
      ]),
      signal,
    );
    if (before !== undefined) this.#options.history.report({ kind: 'recalled', start: this.#startCount, init: before.init });

    const work = this.#work(decision, steps, before, signal);
    const failed = work.then(
      async () => await new Promise<never>(() => undefined),
      (error: unknown) => {
        // `stream.run` reports how the stream ended.
        if (error instanceof StreamLost || signal.aborted) return new Promise<never>(() => undefined);
        throw error;
      },
    );
    try {
      return await Promise.race([this.#stream.run(signal), failed]);
    } finally {
      this.#finished.abort();
      await work.catch(() => undefined);
    }
  }

  async #work(
    first: Decision,
    steps: readonly PlanStep[] | DroverError,
    before: SandboxView | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const hello = this.#stream.request(
      { case: 'hello', value: { controlPlaneVersion: version, sentAt: timestampFromMs(this.#context.clock.now()) } },
      'helloAck',
    );
    // Send requests that do not depend on HelloAck together with Hello: this saves the user one round trip.
    const onlyReady = first.kind === 'trusted' && !(steps instanceof DroverError) && steps[0]?.name === 'agent-ready';
    const ready = onlyReady ? this.#requestReady() : undefined;
    const registered = first.kind === 'register' && !first.again ? this.#admission.requestRegister('') : undefined;
    ready?.catch(() => undefined);
    registered?.catch(() => undefined);

    const ack = await hello;
    this.#options.greeted(ack);
    const decision = ack.sandboxId === this.#id ? first : otherSandbox(ack.sandboxId);
    const outcome = await this.#admission.admit(decision, registered, before?.identity.verdict === 'trusted', signal);
    if (outcome.kind === 'untrusted') return await this.#refusePlan(outcome, before, signal);
    this.#trusted = true;
    await this.#prepare(steps, ack, before, ready, signal);
    await this.#renew(signal);
  }

  /**
   * No step is sent to an untrusted peer. A start whose plan was completed needs none. The stored state decides whether it was completed,
   * since an untrusted peer proves nothing.
   * @throws {DroverError} unavailable when the stored state could not be read: another session decides
   */
  async #refusePlan({ message, expired }: Untrusted, before: SandboxView | undefined, signal: AbortSignal): Promise<void> {
    if (this.#isCompleted()) {
      this.#settle();
      if (expired === true) await this.#renew(signal);
      return;
    }
    if (before === undefined) throw new DroverError('unavailable', 'the stored state of the sandbox cannot be read');
    await this.#failUnbegun({ reason: 'identity-untrusted', message: `no plan is sent to a peer that is not trusted: ${message}` }, signal);
  }

  /** Runs the missing steps of the plan (I-32). Init reports the completed steps of this start. */
  async #prepare(
    planned: readonly PlanStep[] | DroverError,
    { stepsDone }: init.HelloAck,
    before: SandboxView | undefined,
    ready: Promise<void> | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const { journal, clock } = this.#context;
    const { history } = this.#options;
    const start = this.#startCount;
    if (stepsDone.includes('agent-ready')) {
      // The command, which is the last step, has begun: from now on no failure may end this start.
      if (!this.#isCompleted()) this.#publishCompleted(before?.init);
      history.report({ kind: 'completed', start });
      return this.#settle();
    }
    if (planned instanceof DroverError) return await this.#failUnbegun({ reason: 'io-error', message: planned.message }, signal);
    const outcome = await executePlan(planned, {
      id: this.#id,
      startCount: start,
      stream: this.#stream,
      journal,
      clock,
      signal: this.#ending,
      done: stepsDone,
      ready: () => ready ?? this.#requestReady(),
    });
    if (outcome.kind === 'cancelled') return;
    if (outcome.kind === 'completed') {
      history.report({ kind: 'completed', start });
      return this.#settle();
    }
    const { place, failure } = outcome;
    // The next session runs the missing steps. The policy bounds these retries.
    if (failure.reason === 'transport-error') return history.report({ kind: 'interrupted', start });
    this.#settle();
    // A command that could not be started ends the sandbox, and its host reports that. Without a report, it fails as any other step.
    if (place.step === 'agent-ready') await clock.sleep(endReportMs, signal);
    await this.#declareFailed(failure.message + (failure.stderr === undefined ? '' : `: ${failure.stderr.trim()}`), undefined, signal);
  }

  async #failUnbegun(failure: StepFailure, signal: AbortSignal): Promise<void> {
    this.#settle();
    await this.#declareFailed(failure.message, failure, signal);
  }

  async #declareFailed(message: string, unbegun: StepFailure | undefined, signal: AbortSignal): Promise<void> {
    const start = { row: this.#options.row, startCount: this.#startCount };
    await declareStartFailed(this.#context, start, message, unbegun, signal);
  }

  #isCompleted(): boolean {
    return this.#options.history.state.completedStart === this.#startCount;
  }

  #settle(): void {
    this.#options.history.report({ kind: 'settled' });
    this.#options.settled();
  }

  async #requestReady(): Promise<void> {
    // Report before sending: even without a response, the command may run.
    this.#options.history.report({ kind: 'ready-requested', start: this.#startCount });
    await requestReady(this.#stream);
  }

  /** Publishes InitCompleted for a session that was lost before it could do so. */
  #publishCompleted(view: InitView | undefined): void {
    const { clock, journal } = this.#context;
    const began = view?.state === 'running' && view.startCount === this.#startCount ? view.since : clock.now();
    const count = stepNames(this.#options.row.spec.setup).length;
    const data = { count, durationMs: Math.max(0, clock.now() - began), startCount: this.#startCount };
    journal.publish({ kind: 'init', type: 'InitCompleted', subject: this.#id, data });
  }

  /** @throws {DroverError} unavailable after the renewal of an expired certificate: another session trusts the new one */
  async #renew(signal: AbortSignal): Promise<void> {
    const { certificate, commonName } = this.#options.verdict;
    if (certificate === undefined) return;
    const peer: RenewedPeer = Object.assign(this.#peer, { id: this.#id, certificate, commonName });
    const renewed = (): void => {
      if (!this.#trusted) throw new DroverError('unavailable', 'the certificate of the sandbox had expired, and was renewed');
    };
    await renewCertificates(this.#context, peer, this.#stream, renewed, signal);
  }
}

function otherSandbox(claimed: string): Untrusted {
  return {
    kind: 'untrusted',
    reason: 'certificate-invalid',
    message: `its init claims to be ${JSON.stringify(clip(claimed))}, but its certificate does not confirm that`,
  };
}
