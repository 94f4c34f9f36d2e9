import type { Announcement, ProcessStatus } from '@drover/supervisor';

/**
 * The sentence with which `up` reports a change of one of its processes.
 * @param logged the error that the process has logged since it was last healthy; the error of the last probe may belong to an earlier run
 */
export function noticeText(
  { name, state, lastError, lastExit }: ProcessStatus,
  announced: Announcement,
  logged: string | undefined,
): string {
  switch (announced) {
    case 'exited':
      // A process that a signal ends has not logged a reason.
      return `${name}: ${endText(lastExit)}${lastExit?.signal ? '' : because(logged)}${state === 'restarting' ? '; starting it again' : ''}`;
    case 'circuit-open':
      return `${name}: it ended too often; the next try is in a minute${because(logged)}`;
    case 'unhealthy':
      return `${name}: does not respond${because(lastError)}`;
    case 'killed':
      return `${name}: did not end within its grace, and was killed`;
    case 'circuit-closed':
      return `${name}: starting it again`;
    default:
      return `${name}: ${announced}`;
  }
}

function endText(exit: ProcessStatus['lastExit']): string {
  if (exit === undefined) return 'it could not be started';
  return exit.signal === null ? `ended with status ${exit.code}` : `killed by ${exit.signal}`;
}

function because(reason: string | undefined): string {
  return reason === undefined ? '' : ` (${reason})`;
}
