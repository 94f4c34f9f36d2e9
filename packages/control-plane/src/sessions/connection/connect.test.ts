import { Duplex } from 'node:stream';
import { FakeClock, newSandboxId } from '@drover/foundation';
import { createTestAuthority, type TestAuthority } from '@drover/init/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CloseFailed, connectInit, type SessionCredentials } from './connect.ts';

/** A tunnel without a responding peer. */
class Silence extends Duplex {
  readonly #closes: boolean;

  constructor(closes: boolean) {
    super();
    this.#closes = closes;
  }

  override _read(): void {
    // No data arrives.
  }

  override _write(_chunk: Buffer, _encoding: string, done: () => void): void {
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    if (this.#closes) done(error);
  }
}

describe('an abandoned connection', () => {
  let authority: TestAuthority;
  let credentials: SessionCredentials;

  beforeAll(async () => {
    authority = await createTestAuthority();
    const { certificatePem, keyPem } = authority.controlPlane;
    credentials = { certPem: certificatePem, keyPem, caPem: authority.authority.caPem };
  });
  afterAll(async () => await authority.close());

  async function givenUp(
    closes: boolean,
  ): Promise<{ readonly clock: FakeClock; readonly tunnel: Silence; readonly outcome: Promise<unknown> }> {
    const clock = new FakeClock();
    const tunnel = new Silence(closes);
    const caller = new AbortController();
    const outcome = connectInit(tunnel, newSandboxId(), credentials, clock, caller.signal).catch((error: unknown) => error);
    await clock.advance(0);
    caller.abort(new Error('no time'));
    return { clock, tunnel, outcome };
  }

  it('I-26: closes its tunnel before it reports the failure', async () => {
    const { clock, tunnel, outcome } = await givenUp(true);
    expect(await outcome).toBeInstanceOf(Error);
    expect(tunnel.closed).toBe(true);
    expect(clock.sleeping).toBe(0);
  });

  it('I-25: reports a tunnel that does not close in time', async () => {
    const { clock, outcome } = await givenUp(false);
    await clock.advance(4_999);
    expect(clock.sleeping).toBe(1);
    await clock.advance(1);
    expect(await outcome).toBeInstanceOf(CloseFailed);
  });
});
