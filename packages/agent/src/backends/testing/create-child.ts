// The agent that crashes: creates a sandbox, or a standby, and waits to be killed. Argument: a CrashOrder, as JSON.
import { openCrashing, type CrashOrder } from './oci-harness.ts';

const order = JSON.parse(process.argv[2] ?? '') as CrashOrder;
const { backend, request } = await openCrashing(order);
const signal = AbortSignal.timeout(20_000);
process.stdout.write('begin\n');
if (order.act === 'prestart') process.stdout.write(`${String(await backend.prestart(signal))}\n`);
else if (order.act === 'create from standby') await backend.create(request, signal, await backend.prestart(signal));
else await backend.create(request, signal);
process.stdout.write('done\n');
setInterval(() => undefined, 60_000);
