import { invalid, quote } from './invalid.ts';

/** signal(7): the numbers 1 to 31 on x86-64 and arm64, in order. Not the platform's own table: a client may run elsewhere. */
const standardSignals =
  'HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS'.split(
    ' ',
  );
const aliases: Readonly<Record<string, string>> = { IOT: 'ABRT', POLL: 'IO', CLD: 'CHLD', UNUSED: 'SYS' };
/** SIGRTMIN as glibc and the OCI runtimes count it: the C library keeps 32 and 33 for itself. */
const firstRealTime = 34;
const lastSignal = 64;

/**
 * The number of a signal written as people and images write it: `TERM`, `SIGTERM`, `quit`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
 * @throws {DroverError} invalid-argument
 */
export function parseSignal(text: string): number {
  const name = text.toUpperCase().replace(/^SIG/, '');
  const standard = standardSignals.indexOf(aliases[name] ?? name) + 1;
  if (standard > 0) return standard;
  const realTime = /^RT(MIN|MAX)(?:([+-])(\d{1,2}))?$/.exec(name);
  if (realTime !== null) {
    const [, base, sign, distance = '0'] = realTime;
    const number = base === 'MIN' ? firstRealTime + Number(distance) : lastSignal - Number(distance);
    const away = base === 'MIN' ? '+' : '-';
    if ((sign === undefined || sign === away) && number >= firstRealTime && number <= lastSignal) return number;
  }
  if (/^\d{1,2}$/.test(text) && Number(text) >= 1 && Number(text) <= lastSignal) return Number(text);
  throw invalid(`${quote(text)} is not a signal`, `use a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to ${lastSignal}`);
}

/** `SIGTERM`, `SIGRTMIN+3`; the plain number for the two that the C library keeps for itself. */
export function signalName(number: number): string {
  const standard = standardSignals[number - 1];
  if (standard !== undefined) return `SIG${standard}`;
  if (number === firstRealTime) return 'SIGRTMIN';
  if (number > firstRealTime && number <= lastSignal) return `SIGRTMIN+${number - firstRealTime}`;
  return String(number);
}

/** The exit status of a process that a signal ended, as shells count. */
export function signalExitCode(number: number): number {
  return 128 + number;
}
