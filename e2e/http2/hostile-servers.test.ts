import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { groups } from './attacks.ts';
import { growthBytes, inTurns, Peers, Victim } from './driver.ts';

/** Time limits of a client for a good and an attacking server. Milliseconds. */
const goodMs = 10_000;
const attackedMs = 300;

describe.each(['session', 'agent-link', 'sdk', 'join', 'gateway-client'])('the client %s', (name) => {
  let victim: Victim;
  let peers: Peers;
  let before: number;
  beforeAll(async () => {
    victim = await Victim.start(name);
    peers = await Peers.start(victim.directory, name === 'gateway-client');
    await victim.dial(peers.good, goodMs);
    before = await victim.memory();
  });
  afterAll(async () => {
    await peers[Symbol.asyncDispose]();
    await victim[Symbol.asyncDispose]();
  });

  test.each(groups)('reaches another server after %s', async (_group, attacks) => {
    await inTurns(attacks, async (attack) => {
      const done = peers.next(attack);
      // A client that closed its connection before it sent a byte was not attacked.
      while (!(await peers.isOver(done))) await victim.dial(peers.attacker, attackedMs);
    });
    const after = await victim.memory();
    const served = peers.served;
    await victim.dial(peers.good, goodMs);
    expect(peers.served).toBeGreaterThan(served);
    expect(after - before).toBeLessThan(growthBytes);
  });
});
