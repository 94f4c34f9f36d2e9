/** The gateway as a program of its own: `node bin.ts --control-socket PATH --listen ADDRESS:PORT`. */
import { gatewayMain } from './main.ts';

process.exitCode = await gatewayMain(process.argv.slice(2));
