/** The gateway as its own program: `node bin.ts gateway …` and `node bin.ts gateway-daemon …`. */
import { gatewayPrograms } from './main.ts';

const [name, ...argv] = process.argv.slice(2);
process.exitCode = await gatewayPrograms[name as keyof typeof gatewayPrograms](argv);
