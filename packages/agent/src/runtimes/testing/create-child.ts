// Creates a sandbox and waits to be killed: the agent that crashes. Arguments: the runtime's options and the request, as JSON.
import { silentLogger } from '@drover/foundation';
import { OciRuntime, type OciRuntimeOptions } from '../oci/index.ts';
import type { CreateRequest } from '../runtime.ts';

const [options = '', request = ''] = process.argv.slice(2);
const runtime = new OciRuntime({ ...(JSON.parse(options) as OciRuntimeOptions), logger: silentLogger });
process.stdout.write('begin\n');
await runtime.create(JSON.parse(request) as CreateRequest, AbortSignal.timeout(20_000));
process.stdout.write('done\n');
setInterval(() => undefined, 60_000);
