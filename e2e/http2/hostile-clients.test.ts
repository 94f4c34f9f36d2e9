import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { groups } from './attacks.ts';
import { attackListener, growthBytes, inTurns, mustServe, Victim } from './driver.ts';

/** The listeners of each process. */
const listeners: Readonly<Record<string, readonly string[]>> = {
  'control-plane': ['api', 'link'],
  'sandbox-facing': ['sandbox-facing'],
  init: ['init'],
  gateway: ['gateway'],
};

describe.each(Object.entries(listeners))('listeners of %s', (process, names) => {
  let victim: Victim;
  let before: number;
  beforeAll(async () => {
    victim = await Victim.start(process);
    for (const name of names) await mustServe(victim, name);
    before = await victim.memory();
  });
  afterAll(async () => await victim[Symbol.asyncDispose]());

  describe.each(names)('%s', (name) => {
    test.each(groups)('serves another client after %s', async (_group, attacks) => {
      await inTurns(attacks, async (attack) => {
        // A listener that still counts earlier connections may refuse one, so the attack is retried.
        await attackListener(victim, name, attack).catch(async () => await attackListener(victim, name, attack));
      });
      const after = await victim.memory();
      await mustServe(victim, name);
      expect(after - before).toBeLessThan(growthBytes);
    });
  });
});
