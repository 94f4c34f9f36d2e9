// Creates a sandbox, or a standby, and waits to be killed: the agent that crashes. Arguments: the runtime's options and the request, as JSON,
// and what to do.
import { silentLogger } from '@drover/foundation/log';
import { OciRuntime, type OciRuntimeOptions } from '../oci/index.ts';
import type { CreateRequest } from '../runtime.ts';
import { RuntimeOfStandbys, standByFor } from './standbys.ts';

const [options = '', given = '', act] = process.argv.slice(2);
const settings = { ...(JSON.parse(options) as OciRuntimeOptions), logger: silentLogger };
const request = JSON.parse(given) as CreateRequest;
const runtime = act === 'create of standby' ? new RuntimeOfStandbys(settings) : new OciRuntime(settings);
process.stdout.write('begin\n');
if (act === 'stand by') await standByFor(runtime, request, request.id);
else await runtime.create(request, AbortSignal.timeout(20_000));
process.stdout.write('done\n');
setInterval(() => undefined, 60_000);
