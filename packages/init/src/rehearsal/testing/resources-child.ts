// Rehearses in a process of its own, and prints what of it is still there afterwards, as JSON. Argument: the run directory. Needs --expose-gc.
import { createHook } from 'node:async_hooks';
import { readdirSync, readlinkSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { rehearse } from '../rehearsal.ts';

const [runDirectory = ''] = process.argv.slice(2);
/** Ends by itself, or has nothing outside V8. */
const passing = new Set(['PROMISE', 'TickObject', 'Immediate', 'Microtask', 'RANDOMBYTESREQUEST']);

function descriptors(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      // The one that read the directory.
      return [];
    }
  });
}

// The first rehearsal starts what every process of Node's has once it watches a child.
await rehearse(runDirectory);
const before = descriptors();
const alive = new Map<number, string>();
const made = new Set<string>();
const hook = createHook({
  init: (id, type) => {
    if (passing.has(type)) return;
    made.add(type);
    alive.set(id, type);
  },
  destroy: (id) => void alive.delete(id),
}).enable();
await rehearse(runDirectory);
// What is garbage says so only when it is collected.
for (let round = 0; round < 3; round++) {
  globalThis.gc?.();
  await turn();
}
await turn();
hook.disable();
const resources = [...alive.values()];
process.stdout.write(JSON.stringify({ made: [...made], resources, descriptors: descriptors().filter((name) => !before.includes(name)) }));
