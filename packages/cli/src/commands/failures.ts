import { DroverError } from '@drover/foundation';
import { errorFromWire, type api } from '@drover/protocol';
import type { Cli } from '../cli.ts';

/** Prints the error of every failed host. Returns the status of the last failure, or 0. */
export function reportFailures(cli: Cli, failures: readonly api.HostFailure[]): number {
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
