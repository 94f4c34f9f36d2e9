/** Nanoseconds in a second. */
export const nanoseconds = 1_000_000_000n;

/** Whole seconds, rounded down. */
export function floorSeconds(time: bigint): bigint {
  const seconds = time / nanoseconds;
  return time < 0n && seconds * nanoseconds !== time ? seconds - 1n : seconds;
}

/** PAX's decimal seconds: `-1.25` is a second and a quarter before the epoch. */
export function timeText(time: bigint): string {
  const magnitude = time < 0n ? -time : time;
  const fraction = (magnitude % nanoseconds).toString().padStart(9, '0').replace(/0+$/, '');
  return `${time < 0n ? '-' : ''}${magnitude / nanoseconds}${fraction === '' ? '' : `.${fraction}`}`;
}

/** Parses PAX's decimal seconds; undefined for other text. */
export function parseTime(text: string): bigint | undefined {
  const match = /^(-?)(\d{1,18})(?:\.(\d*))?$/.exec(text);
  if (match === null) return undefined;
  const magnitude = BigInt(match[2] ?? '0') * nanoseconds + BigInt((match[3] ?? '').slice(0, 9).padEnd(9, '0'));
  return match[1] === '-' ? -magnitude : magnitude;
}
