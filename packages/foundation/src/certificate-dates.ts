import { DroverError } from './errors.ts';

interface Dates {
  readonly validFromDate: Date;
  readonly validToDate: Date;
}

/**
 * The error for a chain of certificates that is not valid at the present time: one of the two clocks is wrong, or a certificate was not
 * renewed. It names the time of this machine and the date that excludes it. Undefined when all certificates are valid.
 * @param host the peer that presented the chain
 */
export function certificateDatesError(host: string, chain: readonly Dates[], now: Date, cause?: unknown): DroverError | undefined {
  const wrong = chain.find(({ validFromDate, validToDate }) => now < validFromDate || now > validToDate);
  if (wrong === undefined) return undefined;
  const here = `the clock of this machine says ${now.toISOString()}`;
  const options = cause === undefined ? {} : { cause };
  if (now < wrong.validFromDate) {
    return new DroverError('ca-mismatch', `the certificate of ${host} is valid from ${wrong.validFromDate.toISOString()}, and ${here}`, {
      ...options,
      hint: 'set the clock of this machine, for instance with timedatectl set-ntp true; or that of the control plane was ahead when it made its certificate',
    });
  }
  return new DroverError('ca-mismatch', `the certificate of ${host} was valid until ${wrong.validToDate.toISOString()}, and ${here}`, {
    ...options,
    hint: 'set the clock of this machine, for instance with timedatectl set-ntp true; if it is right, restart the control plane, which renews its certificate',
  });
}
