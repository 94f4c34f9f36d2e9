/** Writes DER (ITU-T X.690). A certificate has a fixed form, and a general encoder takes ten times as long to write it. */

export type Der = Uint8Array;

const tags = {
  integer: 0x02,
  bitString: 0x03,
  objectId: 0x06,
  utf8String: 0x0c,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
};

function element(tag: number, ...contents: readonly Der[]): Der {
  const length = contents.reduce((sum, { byteLength }) => sum + byteLength, 0);
  return Buffer.concat([Buffer.from([tag, ...lengthOf(length)]), ...contents]);
}

/** Up to 127 in one byte; more as a count of bytes and the bytes. */
function lengthOf(length: number): readonly number[] {
  if (length < 0x80) return [length];
  const bytes: number[] = [];
  for (let rest = length; rest > 0; rest >>>= 8) bytes.unshift(rest & 0xff);
  return [0x80 | bytes.length, ...bytes];
}

export function sequence(...elements: readonly Der[]): Der {
  return element(tags.sequence, ...elements);
}

export function set(...elements: readonly Der[]): Der {
  return element(tags.set, ...elements);
}

/** An explicitly tagged, context-specific element. */
export function tagged(number: number, ...elements: readonly Der[]): Der {
  return element(0xa0 | number, ...elements);
}

/** @param bytes big-endian and not negative: the highest bit of the first byte is zero */
export function integer(...bytes: readonly number[]): Der {
  return element(tags.integer, Uint8Array.from(bytes));
}

export function bitString(bytes: Der): Der {
  // A whole number of bytes: no bit of the last one is unused.
  return element(tags.bitString, Uint8Array.of(0), bytes);
}

/** @param id in dotted form: `2.5.4.3` */
export function objectId(id: string): Der {
  const [first = 0, second = 0, ...rest] = id.split('.').map(Number);
  return element(tags.objectId, Uint8Array.from([first * 40 + second, ...rest].flatMap(base128)));
}

function base128(value: number): readonly number[] {
  const bytes = [value & 0x7f];
  for (let rest = Math.floor(value / 128); rest > 0; rest = Math.floor(rest / 128)) bytes.unshift(0x80 | (rest & 0x7f));
  return bytes;
}

export function utf8String(text: string): Der {
  return element(tags.utf8String, Buffer.from(text));
}

/** Up to the year 2049 as UTCTime, later as GeneralizedTime (RFC 5280, section 4.1.2.5). @param ms since the epoch; cut to the second */
export function time(ms: number): Der {
  const digits = new Date(ms).toISOString().replace(/\.\d+|[-:T]/g, '');
  return digits < '2050' ? element(tags.utcTime, Buffer.from(digits.slice(2))) : element(tags.generalizedTime, Buffer.from(digits));
}

/** @param label `CERTIFICATE` */
export function pem(label: string, der: Der): string {
  const lines = Buffer.from(der)
    .toString('base64')
    .replace(/.{64}(?!$)/g, '$&\n');
  return `-----BEGIN ${label}-----\n${lines}\n-----END ${label}-----\n`;
}
