import { DroverError } from '@drover/foundation';
import type { WireField, WireSchema } from './schema.ts';

/**
 * Protobuf's binary format (https://protobuf.dev/programming-guides/encoding/) for the messages of a table, in protobuf-es's shapes:
 * camel-case properties, oneofs as `{ case, value }`, 64-bit integers as bigint.
 */

/** Any message, as the codec sees it. */
type Fields = Record<string, unknown>;
interface Oneof {
  readonly case?: string | undefined;
  readonly value?: unknown;
}

const varint = 0;
const fixed64 = 1;
const delimited = 2;
const fixed32 = 5;

/** Deeper nesting than any message of ours: a peer cannot exhaust the stack. */
const maxDepth = 16;

export function encode(schema: WireSchema, name: string, message: object): Buffer {
  const out: Uint8Array[] = [];
  writeMessage(schema, name, message as Fields, out);
  return Buffer.concat(out);
}

/** Unknown fields are skipped. @throws {DroverError} protocol-violation */
export function decode(schema: WireSchema, name: string, bytes: Uint8Array): object {
  const reader = new Reader(bytes);
  return readMessage(schema, name, reader, bytes.length, 0);
}

function writeMessage(schema: WireSchema, name: string, message: Fields, out: Uint8Array[]): void {
  for (const field of schema.messages[name] ?? []) {
    let value = message[field.name];
    if (field.oneof !== undefined) {
      const oneof = message[field.oneof] as Oneof | undefined;
      if (oneof?.case !== field.name) continue;
      value = oneof.value;
    }
    if (value === undefined) continue;
    if (field.repeated === true) for (const item of value as unknown[]) writeField(schema, field, item, out);
    // Without presence of its own, a scalar's zero is not sent.
    else if (field.oneof !== undefined || field.type === 'message' || !isZero(value)) writeField(schema, field, value, out);
  }
}

function isZero(value: unknown): boolean {
  return value === 0 || value === 0n || value === false || value === '' || (value instanceof Uint8Array && value.length === 0);
}

function writeField(schema: WireSchema, field: WireField, value: unknown, out: Uint8Array[]): void {
  if (field.type === 'string' || field.type === 'bytes' || field.type === 'message') {
    const body = encodeBody(schema, field, value);
    out.push(varintBytes(BigInt((field.no << 3) | delimited)), varintBytes(BigInt(body.length)), body);
    return;
  }
  const number = typeof value === 'boolean' ? (value ? 1n : 0n) : BigInt(value as number | bigint);
  // Negative numbers are sent as 64 bits, as the format has it.
  out.push(varintBytes(BigInt((field.no << 3) | varint)), varintBytes(BigInt.asUintN(64, number)));
}

function encodeBody(schema: WireSchema, field: WireField, value: unknown): Uint8Array {
  if (field.type === 'string') return Buffer.from(value as string, 'utf8');
  if (field.type === 'bytes') return value as Uint8Array;
  return encode(schema, field.message ?? '', value as object);
}

function varintBytes(value: bigint): Uint8Array {
  const bytes: number[] = [];
  let rest = value;
  while (rest > 127n) {
    bytes.push(Number(rest & 127n) | 128);
    rest >>= 7n;
  }
  bytes.push(Number(rest));
  return Uint8Array.from(bytes);
}

function readMessage(schema: WireSchema, name: string, reader: Reader, end: number, depth: number): object {
  if (depth > maxDepth) throw malformed();
  const fields = schema.messages[name] ?? [];
  const message = empty(name, fields);
  while (reader.at < end) {
    const key = Number(reader.varint());
    const no = key >>> 3;
    const wireType = key & 7;
    const field = fields.find((f) => f.no === no);
    const expected = field?.type === 'string' || field?.type === 'bytes' || field?.type === 'message' ? delimited : varint;
    if (field === undefined || wireType !== expected) {
      reader.skip(wireType);
      continue;
    }
    const value = readValue(schema, field, reader, depth);
    if (field.repeated === true) (message[field.name] as unknown[]).push(value);
    else if (field.oneof === undefined) message[field.name] = value;
    else message[field.oneof] = { case: field.name, value };
  }
  if (reader.at !== end) throw malformed();
  return message;
}

function readValue(schema: WireSchema, field: WireField, reader: Reader, depth: number): number | bigint | boolean | string | object {
  switch (field.type) {
    case 'uint32':
      return Number(reader.varint() & 0xffff_ffffn);
    case 'int32':
      return Number(BigInt.asIntN(32, reader.varint()));
    case 'uint64':
      return reader.varint();
    case 'bool':
      return reader.varint() !== 0n;
    case 'string':
      return reader.bytes().toString('utf8');
    case 'bytes':
      return reader.bytes();
    default: {
      const length = reader.length();
      return readMessage(schema, field.message ?? '', reader, reader.at + length, depth + 1);
    }
  }
}

function empty(name: string, fields: readonly WireField[]): Fields {
  const message: Fields = { $typeName: name };
  for (const field of fields) {
    if (field.oneof !== undefined) message[field.oneof] = { case: undefined };
    else if (field.repeated === true) message[field.name] = [];
    else if (field.type !== 'message') message[field.name] = zeros[field.type]();
  }
  return message;
}

const zeros = {
  uint32: () => 0,
  int32: () => 0,
  uint64: () => 0n,
  bool: () => false,
  string: () => '',
  bytes: () => new Uint8Array(),
};

function malformed(): DroverError {
  return new DroverError('protocol-violation', 'a message is malformed');
}

class Reader {
  readonly #bytes: Buffer;
  at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  varint(): bigint {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = this.#bytes[this.at++];
      if (byte === undefined) throw malformed();
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return BigInt.asUintN(64, value);
    }
    throw malformed();
  }

  /** A length that fits in what is left. */
  length(): number {
    const length = this.varint();
    if (length > BigInt(this.#bytes.length - this.at)) throw malformed();
    return Number(length);
  }

  bytes(): Buffer {
    const length = this.length();
    this.at += length;
    return this.#bytes.subarray(this.at - length, this.at);
  }

  skip(wireType: number): void {
    if (wireType === varint) this.varint();
    else if (wireType === delimited) this.bytes();
    else if (wireType === fixed64) this.at += 8;
    else if (wireType === fixed32) this.at += 4;
    else throw malformed();
    if (this.at > this.#bytes.length) throw malformed();
  }
}
