import { DroverError, version } from '@drover/foundation';
import { api } from '@drover/protocol';
import type { Cli } from '../../cli.ts';
import { messageJson } from '../../output/index.ts';

/** Prints the versions of this program and, if it responds, of the control plane. */
export default async function showVersion(cli: Cli): Promise<void> {
  let server: api.Version | undefined;
  let problem: string | undefined;
  try {
    server = await (await cli.connect()).version(cli.signal);
  } catch (thrown) {
    problem = DroverError.from(thrown).message;
  }
  if (cli.out.json) {
    cli.out.object({
      client: { version, node: process.version },
      server: server === undefined ? null : messageJson(api.VersionSchema, server),
    });
    return;
  }
  cli.out.line(`drover ${version} (Node.js ${process.version})`);
  cli.out.line(
    server === undefined ? `control plane: ${problem}` : `control plane ${server.version} (${server.store}, ${server.trustDomain})`,
  );
}
