import { DroverError } from '@drover/foundation';
import { errorFromWire, type api } from '@drover/protocol';
import type { Cli } from '../cli.ts';

/** Says which hosts failed, and gives the status of the last; 0 when none did. */
export function tellFailures(cli: Cli, failures: readonly api.HostFailure[]): number {
  let status = 0;
  for (const { hostName, hostId, error } of failures) {
    if (error === undefined) continue;
    const failure = errorFromWire(error);
    status = failure.exitCode;
    cli.out.error(
      new DroverError(
        failure.code,
        `${hostName === '' ? hostId : hostName}: ${failure.message}`,
        failure.hint === undefined ? {} : { hint: failure.hint },
      ),
    );
  }
  return status;
}
