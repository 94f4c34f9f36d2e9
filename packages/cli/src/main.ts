import { runCli } from './run-cli.ts';

const status = await runCli(process.argv.slice(2));
// Handles that nobody needs any more (a half-open connection, stdin) do not hold the program up; what was written is.
await Promise.all([process.stdout, process.stderr].map((stream) => new Promise<void>((resolve) => stream.write('', () => resolve()))));
process.exit(status);
