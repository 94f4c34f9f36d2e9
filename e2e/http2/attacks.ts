import { fields, flag, frame, frameType } from '@drover/protocol/testing';

/** The bytes of a peer after a correct beginning: the preface, SETTINGS, and a request or the start of a response on stream 1. */
export interface Attack {
  readonly name: string;
  readonly bytes: Buffer;
  /** Whether the attack replaces the correct beginning. */
  readonly first?: boolean;
  /** Whether `bytes` repeat up to `floodBytes`, or until the process closes the connection. */
  readonly flood?: boolean;
  /** The end of the connection, if the process does not close it. */
  readonly end: 'hold' | 'fin' | 'reset';
}

const { data, headers, priority, rstStream, settings, pushPromise, ping, goaway, windowUpdate, continuation } = frameType;
const { altsvc, origin, priorityUpdate } = frameType;

/** A header field for stream 1, besides the required ones. */
const field = fields(['a', 'b']);
const status200 = Buffer.from([0x88]);

interface FrameKind {
  readonly type: number;
  /** The stream of a correct frame of the type. */
  readonly stream: number;
  readonly payload: Buffer;
}

const word = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

/** Every frame type of RFC 9113 and its registry (section 11.2), and an unknown one. */
export const frameKinds: Readonly<Record<string, FrameKind>> = {
  DATA: { type: data, stream: 1, payload: Buffer.from('data') },
  HEADERS: { type: headers, stream: 1, payload: field },
  PRIORITY: { type: priority, stream: 1, payload: Buffer.from([0, 0, 0, 3, 15]) },
  RST_STREAM: { type: rstStream, stream: 1, payload: word(8) },
  SETTINGS: { type: settings, stream: 0, payload: Buffer.from([0, 4, 0, 1, 0, 0]) },
  PUSH_PROMISE: { type: pushPromise, stream: 1, payload: Buffer.concat([word(2), field]) },
  PING: { type: ping, stream: 0, payload: Buffer.alloc(8) },
  GOAWAY: { type: goaway, stream: 0, payload: Buffer.concat([word(1), word(0)]) },
  WINDOW_UPDATE: { type: windowUpdate, stream: 0, payload: word(1) },
  CONTINUATION: { type: continuation, stream: 1, payload: field },
  ALTSVC: { type: altsvc, stream: 0, payload: Buffer.concat([Buffer.from([0, 3]), Buffer.from('a.bh2=":1"')]) },
  ORIGIN: { type: origin, stream: 0, payload: Buffer.concat([Buffer.from([0, 9]), Buffer.from('https://a')]) },
  PRIORITY_UPDATE: { type: priorityUpdate, stream: 0, payload: Buffer.concat([word(1), Buffer.from('u=1')]) },
  unknown: { type: 0x42, stream: 1, payload: Buffer.from('?') },
};

/** Malformed, truncated, reordered and flooded frames of one type. */
export function attacksOf({ type, stream, payload }: FrameKind): readonly Attack[] {
  const good = frame(type, 0, stream, payload);
  const other = stream === 0 ? 1 : 0;
  /** Returns a frame whose header claims another payload length. */
  const claims = (length: number, rest: Buffer): Buffer => {
    const bytes = frame(type, 0, stream, rest);
    bytes.writeUIntBE(length, 0, 3);
    return bytes;
  };
  const openBlock = frame(headers, 0, 1, field);
  const closed = frame(rstStream, 0, 1, word(8));
  return [
    { name: 'correct', bytes: good, end: 'hold' },
    { name: 'one byte too short', bytes: frame(type, 0, stream, payload.subarray(1)), end: 'hold' },
    { name: 'one byte too long', bytes: frame(type, 0, stream, Buffer.concat([payload, Buffer.alloc(1)])), end: 'hold' },
    { name: 'empty', bytes: frame(type, 0, stream), end: 'hold' },
    { name: 'on the other kind of stream', bytes: frame(type, 0, other, payload), end: 'hold' },
    { name: 'on a stream of the other side', bytes: frame(type, 0, 2, payload), end: 'hold' },
    { name: 'on the last stream', bytes: frame(type, 0, 0x7fffffff, payload), end: 'hold' },
    { name: 'with the reserved bit', bytes: frame(type, 0, (stream | 0x80000000) >>> 0, payload), end: 'hold' },
    { name: 'with every flag', bytes: frame(type, 0xff, stream, payload), end: 'hold' },
    { name: 'padded beyond its end', bytes: frame(type, flag.padded, stream, Buffer.concat([Buffer.from([255]), payload])), end: 'hold' },
    { name: 'larger than any frame may be', bytes: claims(0xffffff, Buffer.alloc(20_000)), end: 'hold' },
    { name: 'of all ones', bytes: frame(type, 0, stream, Buffer.alloc(payload.length, 0xff)), end: 'hold' },
    { name: 'cut in its header, then silence', bytes: good.subarray(0, 5), end: 'hold' },
    { name: 'cut in its payload, then silence', bytes: claims(payload.length + 8, payload), end: 'hold' },
    { name: 'cut in its payload, then the end', bytes: claims(payload.length + 8, payload), end: 'fin' },
    { name: 'cut in its payload, then a reset', bytes: claims(payload.length + 8, payload), end: 'reset' },
    { name: 'before anything else', bytes: good, first: true, end: 'hold' },
    { name: 'inside a header block', bytes: Buffer.concat([openBlock, good]), end: 'hold' },
    { name: 'after its stream was reset', bytes: Buffer.concat([closed, good, good]), end: 'hold' },
    { name: 'after GOAWAY', bytes: Buffer.concat([frame(goaway, 0, 0, Buffer.concat([word(0), word(0)])), good]), end: 'hold' },
    { name: 'flooded', bytes: Buffer.concat(Array.from({ length: 500 }, () => good)), flood: true, end: 'hold' },
  ];
}

const block = (flags: number, payload: Buffer): Buffer => frame(headers, flags, 1, payload);
const continued = (count: number): Buffer => Buffer.concat(Array.from({ length: count }, () => frame(continuation, 0, 1, field)));
const whole = flag.endHeaders;
const response = block(whole, status200);

/** Header blocks that never end, or that a receiver must refuse: as a first block, and as trailers. */
export const headerBlocks: readonly Attack[] = [
  { name: 'a block that never ends', bytes: block(0, field), end: 'hold' },
  { name: 'a block that never ends, then the end', bytes: block(0, field), end: 'fin' },
  { name: 'a block that never ends, then a reset', bytes: block(0, field), end: 'reset' },
  { name: 'an empty block and 20 CONTINUATION frames', bytes: Buffer.concat([block(0, Buffer.alloc(0)), continued(20)]), end: 'hold' },
  { name: '4 CONTINUATION frames, then a reset', bytes: Buffer.concat([block(0, status200), continued(4)]), end: 'reset' },
  { name: 'CONTINUATION frames without end', bytes: continued(500), flood: true, end: 'hold' },
  { name: 'trailers that never end', bytes: Buffer.concat([response, block(0, field)]), end: 'hold' },
  { name: 'trailers that do not end the stream', bytes: Buffer.concat([response, block(whole, field)]), end: 'hold' },
  {
    name: 'trailers with a pseudo-header field',
    bytes: Buffer.concat([response, block(whole | flag.endStream, Buffer.concat([field, status200]))]),
    end: 'hold',
  },
  {
    name: 'trailers that HPACK cannot decode',
    bytes: Buffer.concat([response, block(whole | flag.endStream, Buffer.concat([field, Buffer.alloc(5, 0xff)]))]),
    end: 'hold',
  },
  { name: 'a block that HPACK cannot decode', bytes: block(whole, Buffer.concat([field, Buffer.alloc(5, 0xff)])), end: 'hold' },
  { name: 'a pseudo-header field after another field', bytes: block(whole, Buffer.concat([status200, field, status200])), end: 'hold' },
  { name: 'a field name in upper case', bytes: block(whole, Buffer.concat([status200, fields(['A', 'b'])])), end: 'hold' },
  {
    name: 'more fields than are accepted',
    bytes: block(whole, Buffer.concat([status200, ...Array.from({ length: 2_000 }, () => field)])),
    end: 'hold',
  },
  {
    name: 'more bytes of fields than are accepted',
    bytes: block(whole, Buffer.concat([status200, field, Buffer.alloc(10_000, 0xbe)])),
    end: 'hold',
  },
  { name: 'a response that is followed by a reset', bytes: Buffer.concat([response, frame(rstStream, 0, 1, word(8))]), end: 'hold' },
  { name: 'random bytes', bytes: Buffer.from('8d3b1f00c2a9ffee'.repeat(100), 'hex'), end: 'hold' },
  { name: 'HTTP/1.1', bytes: Buffer.from('GET / HTTP/1.1\r\nhost: a\r\n\r\n'), first: true, end: 'hold' },
  { name: 'nothing', bytes: Buffer.alloc(0), first: true, end: 'hold' },
  { name: 'half of the preface', bytes: Buffer.from('PRI * HTTP/2.0\r\n\r\n'), first: true, end: 'hold' },
];

/** Every attack of this suite, in groups that run together. */
export const groups: readonly (readonly [name: string, attacks: readonly Attack[]])[] = [
  ...Object.entries(frameKinds).map(([name, kind]) => [`${name} frames`, attacksOf(kind)] as const),
  ['header blocks', headerBlocks],
];
