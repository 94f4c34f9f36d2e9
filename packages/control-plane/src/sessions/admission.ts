import { Backoff, DroverError, withDeadline, type SandboxId } from '@drover/foundation';
import type { UntrustedReason } from '../events/index.ts';
import { dialBackoffBaseMs, dialBackoffCapMs, dialTotalMs, registerRequiredMs } from '../limits.ts';
import {
  decide,
  registryCheck,
  StreamLost,
  type Decision,
  type PeerVerdict,
  type SessionStream,
  type Untrusted,
} from './connection/index.ts';
import type { SessionContext } from './context.ts';

type Outcome = { readonly kind: 'trusted' } | Untrusted;

/** Decides whether the peer of one connection is the sandbox (I-27). Makes an unregistered sandbox register first. */
export class Admission {
  readonly #context: SessionContext;
  readonly #id: SandboxId;
  readonly #startCount: number;
  readonly #verdict: PeerVerdict;
  readonly #stream: SessionStream;

  constructor(context: SessionContext, peer: { id: SandboxId; startCount: number; verdict: PeerVerdict }, stream: SessionStream) {
    this.#context = context;
    this.#id = peer.id;
    this.#startCount = peer.startCount;
    this.#verdict = peer.verdict;
    this.#stream = stream;
  }

  /** Looks the peer up in the registry, and records the result. */
  async assess(): Promise<Decision> {
    const { registry, worldview, clock, logger } = this.#context;
    const verdict = this.#verdict;
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

  /** @param bootstrapToken empty: init uses the one that it received with its certificate */
  async requestRegister(bootstrapToken: string): Promise<void> {
    const response = this.#stream.request({ case: 'registerRequired', value: { bootstrapToken } }, 'registerDone');
    await withDeadline(response, registerRequiredMs, this.#context.clock, (ms) => {
      return new DroverError('timed-out', `the end of the registration was not reported within ${ms / 1000} s`);
    });
  }

  /**
   * Returns the final decision, and publishes each change of it.
   * @param requested the response to a `requestRegister` that was sent with Hello
   */
  async admit(first: Decision, requested: Promise<void> | undefined, wasTrusted: boolean, signal: AbortSignal): Promise<Outcome> {
    const { clock, journal, registry, random } = this.#context;
    const { thumbprint } = this.#verdict;
    const backoff = new Backoff({ baseMs: dialBackoffBaseMs, capMs: dialBackoffCapMs, ...(random === undefined ? {} : { random }) });
    const until = clock.now() + dialTotalMs;
    let published: UntrustedReason | undefined;
    let pending = requested;
    for (let decision = first; ; decision = await this.assess()) {
      const outcome = decision.kind === 'register' ? await this.#register(decision.again, pending) : decision;
      pending = undefined;
      if (outcome.kind === 'trusted') {
        registry.seen(this.#id, thumbprint);
        if (!wasTrusted || published !== undefined) {
          journal.publish({ kind: 'identity', type: 'AgentTrusted', subject: this.#id, data: { thumbprint } });
        }
        return outcome;
      }
      const { reason, message } = outcome;
      if (published !== reason) {
        journal.publish({ kind: 'identity', type: 'AgentUntrusted', subject: this.#id, data: { reason, message, thumbprint } });
      }
      published = reason;
      // Retry a failed lookup for as long as a dial may take.
      if (reason !== 'lookup-failed' || clock.now() >= until) return outcome;
      await clock.sleep(backoff.nextMs(), signal);
    }
  }

  /** Makes the sandbox register, then reads the registry: init's own response proves nothing (I-13, I-27). */
  async #register(again: boolean, requested: Promise<void> | undefined): Promise<Outcome> {
    const { journal, lastRefusal } = this.#context;
    const { thumbprint } = this.#verdict;
    let problem = '';
    try {
      await (again ? this.#registerAgain() : (requested ?? this.requestRegister('')));
    } catch (error) {
      if (error instanceof StreamLost) throw error;
      problem = error instanceof Error ? error.message : String(error);
    }
    const decision = await this.assess();
    if (decision.kind !== 'register') return decision;
    const refusal = lastRefusal(this.#id, thumbprint);
    const why = refusal ?? (problem === '' ? 'its init reports success, but the registry has no row for it' : problem);
    const message = `the sandbox did not register: ${why}`;
    const data = { ok: false, thumbprint, startCount: this.#startCount, message };
    journal.publish({ kind: 'identity', type: 'AgentRegistered', subject: this.#id, data });
    return { kind: 'untrusted', reason: refusal === 'peer-address-mismatch' ? refusal : 'register-failed', message };
  }

  async #registerAgain(): Promise<void> {
    const token = await this.#context.registry.secondToken(this.#id, this.#verdict.thumbprint);
    if (token !== undefined) return await this.requestRegister(token);
    throw new DroverError('permission-denied', 'its certificate may not register: it has been used, or was not issued for this start');
  }
}
