import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { X509Certificate } from 'node:crypto';
import { abortable, Backoff, clip, DroverError, version, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { renewAt, type CertificateAuthority, type IssuedCertificate } from '@drover/pki';
import type { init } from '@drover/protocol';
import type { Journal, SandboxEvent, StepFailure, UntrustedReason } from '../events/index.ts';
import type { Registry, RegisterRefusal } from '../identity/index.ts';
import {
  certificateCheckMs,
  dialBackoffBaseMs,
  dialBackoffCapMs,
  dialTotalMs,
  endReportMs,
  registerRequiredMs,
  sandboxRenewalRetryMs,
  stepMs,
} from '../limits.ts';
import { startOf, type SandboxRow } from '../model/index.ts';
import type { Store } from '../store/index.ts';
import type { InitView, SandboxView, Worldview } from '../worldview/index.ts';
import type { Connection } from './connect.ts';
import { askReady, executePlan, within } from './execute.ts';
import { stepNames, type PlanSource, type PlanStep } from './plan.ts';
import { SessionStream, StreamLost, type SessionEnd } from './stream.ts';
import { isDialable } from './target.ts';
import { decide, registryCheck, type Decision, type PeerVerdict, type Untrusted } from './trust.ts';

/** What a session works with. */
export interface SessionContext {
  readonly store: { readonly sandboxes: Pick<Store['sandboxes'], 'get'> };
  readonly journal: Journal;
  readonly registry: Pick<Registry, 'standing' | 'secondToken' | 'renewed' | 'seen'>;
  readonly worldview: Pick<Worldview, 'get' | 'record'>;
  readonly ca: Pick<CertificateAuthority, 'renewSandbox'>;
  readonly plans: PlanSource;
  /** Why the last Register with the sandbox's certificate of this thumbprint was refused; undefined when none was. */
  readonly lastRefusal: (id: SandboxId, thumbprint: string) => RegisterRefusal | undefined;
  /** The plan of this start failed (I-30). False: nothing was written, since the store knows of another start or none. */
  readonly initFailed: (id: SandboxId, startCount: number, message: string) => Promise<boolean>;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly random?: () => number;
}

/** What is known of a sandbox from one session to the next. Without it, after a restart, the worldview says as much. */
export interface Remembered {
  /** The start whose plan was completed; 0: none. */
  completedStart: number;
  /** The start whose init was asked to start the command, whether or not it answered; 0: none. */
  readyAsked: number;
  /** Sessions in a row that broke in mid-plan, before the command can have begun. */
  interruptedPlans: number;
}

/** Takes over what an earlier control plane recorded of the plan of this start. */
export function recall(remembered: Remembered, init: InitView, startCount: number): void {
  if (init.startCount !== startCount) return;
  if (init.state === 'completed') remembered.completedStart = startCount;
  const unanswered = init.state === 'running' || init.failure?.reason === 'transport-error';
  if (unanswered && init.place?.step === 'agent-ready') remembered.readyAsked = startCount;
}

/** The command of this start has begun, or may have: a plan that fails from then on never fails the start. */
export function mayHaveBegun({ completedStart, readyAsked }: Remembered, startCount: number): boolean {
  return completedStart === startCount || readyAsked === startCount;
}

/** A plan of which no step was begun. */
export function failedUnbegun(row: SandboxRow, startCount: number, failure: StepFailure): SandboxEvent {
  const names = stepNames(row.spec.setup);
  const data = { step: names[0] ?? '', index: 1, count: names.length, ...failure, startCount };
  return { kind: 'init', type: 'InitFailed', subject: row.id, data };
}

export interface SessionOptions {
  readonly row: SandboxRow;
  readonly connection: Connection;
  readonly verdict: PeerVerdict;
  readonly remembered: Remembered;
  /** HelloAck came. */
  readonly greeted: (ack: init.HelloAck) => void;
  /** A frame with an unknown id was dropped (I-33). */
  readonly dropped: () => void;
  /** The plan has come to an end, or nothing more comes of it. */
  readonly settled: () => void;
}

/** One connection's session: Hello, who it is, the plan, renewal; until it ends. */
export class Session {
  readonly #context: SessionContext;
  readonly #options: SessionOptions;
  readonly #id: SandboxId;
  readonly #startCount: number;
  readonly #stream: SessionStream;
  /** An intended end. */
  readonly #ending: AbortSignal;
  readonly #over = new AbortController();
  #trusted = false;
  /** Of the certificate that the peer showed, or was given since for the same key. */
  #thumbprint: string;

  constructor(context: SessionContext, options: SessionOptions, signal: AbortSignal) {
    this.#context = context;
    this.#options = options;
    this.#ending = signal;
    this.#id = options.row.id;
    this.#startCount = startOf(options.row);
    this.#thumbprint = options.verdict.thumbprint;
    this.#stream = new SessionStream(options.connection.client, {
      received: () => {
        if (this.#trusted) context.registry.seen(this.#id, this.#thumbprint);
      },
      dropped: options.dropped,
      logger: context.logger.child({ sandbox: this.#id }),
    });
  }

  /** The thumbprint under which the peer is trusted; undefined while, or because, it is not. */
  get trustedAs(): string | undefined {
    return this.#trusted ? this.#thumbprint : undefined;
  }

  /** @throws whatever broke it: the stream's end, or an error of this side's (I-26) */
  async run(): Promise<SessionEnd> {
    const signal = AbortSignal.any([this.#ending, this.#over.signal, this.#options.connection.lost]);
    const { worldview, logger } = this.#context;
    const [decision, before, steps] = await abortable(
      Promise.all([
        this.#assess(),
        worldview.get(this.#id).catch((error: unknown) => {
          logger.warn({ sandbox: this.#id, err: error }, 'the view of a sandbox could not be read');
          return undefined;
        }),
        this.#context.plans(this.#options.row).catch((error: unknown) => DroverError.from(error)),
      ]),
      signal,
    );
    const { remembered } = this.#options;
    if (before !== undefined) recall(remembered, before.init, this.#startCount);

    const work = this.#work(decision, steps, before, signal);
    const failed = work.then(
      async () => await new Promise<never>(() => undefined),
      (error: unknown) => {
        // The stream says itself how it ended.
        if (error instanceof StreamLost || signal.aborted) return new Promise<never>(() => undefined);
        throw error;
      },
    );
    try {
      return await Promise.race([this.#stream.run(signal), failed]);
    } finally {
      this.#over.abort();
      await work.catch(() => undefined);
    }
  }

  async #work(
    first: Decision,
    steps: readonly PlanStep[] | DroverError,
    before: SandboxView | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const { clock } = this.#context;
    const hello = this.#stream.request(
      { case: 'hello', value: { controlPlaneVersion: version, sentAt: timestampFromMs(clock.now()) } },
      'helloAck',
    );
    // What Hello's answer does not change goes out with it: a round trip less is what the user waits less for the first byte.
    const only = first.kind === 'trusted' && !(steps instanceof DroverError) && steps[0]?.name === 'agent-ready';
    const early = {
      ready: only ? this.#askReady() : undefined,
      registered: first.kind === 'register' && !first.again ? this.#askRegister('') : undefined,
    };
    early.ready?.catch(() => undefined);
    early.registered?.catch(() => undefined);

    const ack = await hello;
    this.#options.greeted(ack);
    const decision = ack.sandboxId === this.#id ? first : pretends(ack.sandboxId);
    if (!(await this.#admit(decision, early.registered, before, signal))) return;
    await this.#prepare(steps, ack, before, early.ready, signal);
    await this.#keepCertificate(signal);
  }

  /** Looks into the registry, and records what was found (I-27). */
  async #assess(): Promise<Decision> {
    const { registry, worldview, clock, logger } = this.#context;
    const { verdict } = this.#options;
    const standing =
      verdict.thumbprint === ''
        ? { identity: undefined, mayRegister: false, revoked: false }
        : await registry.standing(this.#id, verdict.thumbprint).catch((error: unknown) => {
            logger.warn({ sandbox: this.#id, err: error }, 'the registry of identities could not be read');
            return undefined;
          });
    worldview.record(this.#id, [...verdict.checks, registryCheck(verdict, standing, clock.now())]);
    return decide(verdict, standing);
  }

  /** Says whether the peer is trusted in the end; Register is driven on a miss. */
  async #admit(
    first: Decision,
    asked: Promise<unknown> | undefined,
    before: SandboxView | undefined,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { clock, journal, registry, random } = this.#context;
    const { thumbprint } = this.#options.verdict;
    const backoff = new Backoff({ baseMs: dialBackoffBaseMs, capMs: dialBackoffCapMs, ...(random === undefined ? {} : { random }) });
    const began = clock.now();
    let said: UntrustedReason | undefined;
    let pending = asked;
    for (let decision = first; ; decision = await this.#assess()) {
      const outcome = decision.kind === 'register' ? await this.#register(decision.again, pending) : decision;
      pending = undefined;
      if (outcome.kind === 'trusted') {
        this.#trusted = true;
        registry.seen(this.#id, thumbprint);
        if (before?.identity.verdict !== 'trusted' || said !== undefined) {
          journal.publish({ kind: 'identity', type: 'AgentTrusted', subject: this.#id, data: { thumbprint } });
        }
        return true;
      }
      const { reason, message } = outcome;
      if (said !== reason) {
        journal.publish({ kind: 'identity', type: 'AgentUntrusted', subject: this.#id, data: { reason, message, thumbprint } });
      }
      said = reason;
      if (reason !== 'lookup-failed' || clock.now() - began >= dialTotalMs) {
        await this.#refusePlan(outcome, before, signal);
        if (outcome.expired === true && this.#options.remembered.completedStart === this.#startCount) await this.#keepCertificate(signal);
        return false;
      }
      // The store's trouble is not the sandbox's: it is asked again, for as long as a dial may take.
      await clock.sleep(backoff.nextMs(), signal);
    }
  }

  async #askRegister(bootstrapToken: string): Promise<void> {
    const answer = this.#stream.request({ case: 'registerRequired', value: { bootstrapToken } }, 'registerDone');
    await within(this.#context.clock, registerRequiredMs, 'the end of the registration', answer);
  }

  /** Has the sandbox register, and looks into the registry: what init says of it counts for nothing (I-13, I-27). */
  async #register(again: boolean, asked: Promise<unknown> | undefined): Promise<{ readonly kind: 'trusted' } | Untrusted> {
    const { registry, journal, lastRefusal } = this.#context;
    const { verdict } = this.#options;
    let problem = '';
    try {
      if (again) {
        const token = await registry.secondToken(this.#id, verdict.thumbprint);
        if (token === undefined)
          throw new DroverError(
            'permission-denied',
            'its certificate may not register: it has been used, or was not issued for this start',
          );
        await this.#askRegister(token);
      } else {
        await (asked ?? this.#askRegister(''));
      }
    } catch (error) {
      if (error instanceof StreamLost) throw error;
      problem = error instanceof Error ? error.message : String(error);
    }
    const decision = await this.#assess();
    if (decision.kind !== 'register') return decision;
    const refusal = lastRefusal(this.#id, verdict.thumbprint);
    const why = refusal ?? (problem === '' ? 'it says that it did, and the registry knows nothing of it' : problem);
    const message = `the sandbox did not register: ${why}`;
    const data = { ok: false, thumbprint: verdict.thumbprint, startCount: this.#startCount, message };
    journal.publish({ kind: 'identity', type: 'AgentRegistered', subject: this.#id, data });
    return { kind: 'untrusted', reason: refusal === 'peer-address-mismatch' ? refusal : 'register-failed', message };
  }

  /**
   * No step is sent to a peer that is not trusted. A start whose plan was completed needs no further step; whether it was is decided by
   * what is stored, since the peer's own word counts for nothing.
   * @throws {DroverError} unavailable when that cannot be read: another session decides
   */
  async #refusePlan({ message }: Untrusted, before: SandboxView | undefined, signal: AbortSignal): Promise<void> {
    if (this.#options.remembered.completedStart === this.#startCount) {
      this.#options.settled();
      return;
    }
    if (before === undefined) throw new DroverError('unavailable', 'the stored state of the sandbox cannot be read');
    await this.#failPlan(
      { reason: 'identity-untrusted', message: `nothing is prepared for a peer that is not trusted: ${message}` },
      signal,
    );
  }

  /** Before its first step. */
  async #failPlan(failure: StepFailure, signal: AbortSignal): Promise<void> {
    this.#context.journal.publish(failedUnbegun(this.#options.row, this.#startCount, failure));
    this.#options.settled();
    await this.#giveUp(failure.message, signal);
  }

  /** Runs what is missing of the plan (I-32): init knows which steps it has done, for as long as the start lasts. */
  async #prepare(
    planned: readonly PlanStep[] | DroverError,
    { stepsDone }: init.HelloAck,
    before: SandboxView | undefined,
    ready: Promise<void> | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const { journal, clock } = this.#context;
    const { remembered, settled } = this.#options;
    if (stepsDone.includes('agent-ready')) {
      // The command has begun, after every other step: nothing is left that could fail, and nothing may fail this start any more.
      if (remembered.completedStart !== this.#startCount) this.#publishCompleted(before?.init);
      remembered.completedStart = this.#startCount;
      settled();
      return;
    }
    if (planned instanceof DroverError) {
      await this.#failPlan({ reason: 'io-error', message: planned.message }, signal);
      return;
    }
    const outcome = await executePlan(planned, {
      id: this.#id,
      startCount: this.#startCount,
      stream: this.#stream,
      journal,
      clock,
      signal: this.#ending,
      done: stepsDone,
      ready: () => ready ?? this.#askReady(),
    });
    if (outcome.kind === 'completed') {
      remembered.completedStart = this.#startCount;
      settled();
    }
    if (outcome.kind !== 'failed') return;
    const { place, failure } = outcome;
    if (failure.reason === 'transport-error') {
      // The next session runs what is missing then; the dialer decides when that was tried often enough.
      if (!mayHaveBegun(remembered, this.#startCount)) remembered.interruptedPlans++;
      return;
    }
    settled();
    // A command that could not be started ends the sandbox, and its host says so; if neither comes, it is as any other step.
    if (place.step === 'agent-ready') await clock.sleep(endReportMs, signal);
    await this.#giveUp(failure.message + (failure.stderr === undefined ? '' : `: ${failure.stderr.trim()}`), signal);
  }

  async #askReady(): Promise<void> {
    // Before it is sent: whatever becomes of the answer, the command may be at work.
    this.#options.remembered.readyAsked = this.#startCount;
    await askReady(this.#stream);
  }

  /** The plan came to its end and the session that ran it was lost before it could record that. */
  #publishCompleted(view: InitView | undefined): void {
    const { clock, journal } = this.#context;
    const began = view?.state === 'running' && view.startCount === this.#startCount ? view.since : clock.now();
    const count = stepNames(this.#options.row.spec.setup).length;
    const data = { count, durationMs: Math.max(0, clock.now() - began), startCount: this.#startCount };
    journal.publish({ kind: 'init', type: 'InitCompleted', subject: this.#id, data });
  }

  /** Has the sandbox fail (I-30). While the store has not heard of this start yet, it is told again. */
  async #giveUp(message: string, signal: AbortSignal): Promise<void> {
    const { store, clock, initFailed, logger, random } = this.#context;
    const backoff = new Backoff({ baseMs: dialBackoffBaseMs, capMs: dialBackoffCapMs, ...(random === undefined ? {} : { random }) });
    const began = clock.now();
    while (!signal.aborted) {
      try {
        if (await initFailed(this.#id, this.#startCount, `init failed: ${message}`)) return;
        const row = await store.sandboxes.get(this.#id);
        if (row === undefined || !isDialable(row)) return;
        // What answered may be a newer start than the one that was looked at: a new session finds out.
        if (startOf(row) !== this.#startCount) throw new DroverError('conflict', 'the sandbox was started again');
      } catch (error) {
        if (error instanceof DroverError && error.code === 'conflict') throw error;
        logger.error({ sandbox: this.#id, err: error }, 'a failed init could not be written down; it is tried again');
      }
      if (clock.now() - began >= dialTotalMs) {
        logger.error({ sandbox: this.#id }, 'a failed init could not be written down');
        return;
      }
      await clock.sleep(backoff.nextMs(), signal);
    }
  }

  /**
   * Renews the certificate that the peer showed, two thirds through its life, for the key that it has (I-6).
   * @throws {DroverError} unavailable when it had expired: the peer is trusted when it has shown the new one, on another session
   */
  async #keepCertificate(signal: AbortSignal): Promise<void> {
    const { clock, ca, registry, journal, logger } = this.#context;
    const { certificate, commonName } = this.#options.verdict;
    if (certificate === undefined) return;
    const key = spkiOf(certificate);
    let due = renewAt(certificate.toString());
    let issued: IssuedCertificate | undefined;
    while (!signal.aborted) {
      const wait = due - clock.now();
      if (wait > 0) {
        await clock.sleep(Math.min(wait, certificateCheckMs), signal);
        continue;
      }
      try {
        // One that init may have already is offered again: two could not both be known.
        if (issued === undefined || clock.now() >= renewAt(issued.certificatePem)) {
          issued = await ca.renewSandbox(this.#id, commonName, key);
        }
        // Before it is sent: init may show it at once.
        await registry.renewed(this.#id, issued.thumbprint, this.#thumbprint);
        const answer = this.#stream.request(
          { case: 'installCertificate', value: { certificatePem: issued.certificatePem } },
          'certificateInstalled',
        );
        await within(clock, stepMs, 'the installation of the certificate', answer);
        due = Math.max(renewAt(issued.certificatePem), clock.now() + sandboxRenewalRetryMs);
        const { thumbprint, notAfter } = issued;
        // It has the key, which the handshake has proved: from now on that is its certificate, and the one before is over.
        this.#thumbprint = thumbprint;
        registry.seen(this.#id, thumbprint);
        journal.publish({ kind: 'session', type: 'SessionRenewed', subject: this.#id, data: { thumbprint } });
        logger.info({ sandbox: this.#id, thumbprint, notAfter }, 'the certificate of a sandbox was renewed');
        issued = undefined;
      } catch (error) {
        if (error instanceof StreamLost) throw error;
        logger.warn({ sandbox: this.#id, err: error }, 'the certificate of a sandbox could not be renewed; it is tried again');
        due = clock.now() + sandboxRenewalRetryMs;
        continue;
      }
      if (!this.#trusted) throw new DroverError('unavailable', 'the certificate of the sandbox had expired, and was renewed');
    }
  }
}

function spkiOf(certificate: X509Certificate): Uint8Array {
  return certificate.publicKey.export({ type: 'spki', format: 'der' });
}

function pretends(claimed: string): Untrusted {
  return {
    kind: 'untrusted',
    reason: 'certificate-invalid',
    message: `its init says that it is ${JSON.stringify(clip(claimed))}, which its certificate does not`,
  };
}
