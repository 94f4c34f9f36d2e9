// Does a warm-up run in its own process, and prints its leftovers as JSON. Argument: the run directory. Needs --expose-gc.
import { createHook } from 'node:async_hooks';
import { readdirSync, readlinkSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { warmUp } from '../warm-up.ts';

const [runDirectory = ''] = process.argv.slice(2);
/** Resources that end automatically, or have nothing outside V8. */
const passing = new Set(['PROMISE', 'TickObject', 'Immediate', 'Microtask', 'RANDOMBYTESREQUEST']);

function descriptors(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      // The descriptor that read the directory.
      return [];
    }
  });
}

// The first run creates the resources of every Node.js process that watches a child.
await warmUp(runDirectory);
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
await warmUp(runDirectory);
// What is garbage says so only when it is collected.
for (let round = 0; round < 3; round++) {
  globalThis.gc?.();
  await turn();
}
await turn();
hook.disable();
const resources = [...alive.values()];
process.stdout.write(JSON.stringify({ made: [...made], resources, descriptors: descriptors().filter((name) => !before.includes(name)) }));
