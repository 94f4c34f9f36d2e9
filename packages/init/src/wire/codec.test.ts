import { create, fromBinary, toBinary, type DescMessage } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { decode, encode } from './codec.ts';
import { schema } from './schema.ts';

const u32 = fc.nat(0xffff_ffff);
const u64 = fc.bigInt(0n, (1n << 64n) - 1n);
const text = fc.string({ unit: 'grapheme', maxLength: 300 });
const bytes = fc.uint8Array({ maxLength: 300 });
const size = fc.record({ rows: u32, columns: u32 });
const exit = fc.record({
  code: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
  signal: text,
  at: fc.record({ seconds: fc.bigInt(0n, 1n << 40n), nanos: fc.nat(999_999_999) }),
});
const messages: readonly (readonly [DescMessage, fc.Arbitrary<object>])[] = [
  [
    init.ExecRequestSchema,
    fc.record({
      payload: fc.oneof(
        fc.record({
          case: fc.constant('start'),
          value: fc.record({ execId: text, argv: fc.array(text), env: fc.array(text), terminal: fc.boolean(), size, stdin: fc.boolean() }),
        }),
        fc.record({ case: fc.constant('attach'), value: fc.record({ execId: text, afterOffset: u64, replay: fc.boolean() }) }),
        fc.record({ case: fc.constant('stdin'), value: bytes }),
        fc.record({ case: fc.constant('stdinEof'), value: fc.boolean() }),
        fc.record({ case: fc.constant('signal'), value: text }),
      ),
    }),
  ],
  [
    init.SessionResponseSchema,
    fc.record({
      id: u64,
      payload: fc.oneof(
        fc.record({
          case: fc.constant('helloAck'),
          value: fc.record({
            sandboxId: text,
            main: fc.record({ phase: fc.constantFrom(0, 1, 2, 3), pid: u32, exit }),
            stepsDone: fc.array(text),
          }),
        }),
        fc.record({ case: fc.constant('mainExited'), value: fc.record({ exit }) }),
        fc.record({ case: fc.constant('pong'), value: fc.constant({}) }),
      ),
    }),
  ],
  [init.LogsRequestSchema, fc.record({ follow: fc.boolean(), tailLines: u64 })],
];

it.each(messages.map(([desc, arbitrary]) => [desc.typeName, desc, arbitrary] as const))(
  '%s reads and writes as protobuf-es does',
  (name, desc, arbitrary) => {
    fc.assert(
      fc.property(arbitrary, (value) => {
        const message = create(desc, value as Record<string, unknown>);
        expect(fromBinary(desc, Uint8Array.from(encode(schema, name, message)))).toEqual(message);
        expect(encode(schema, name, decode(schema, name, toBinary(desc, message)))).toEqual(Buffer.from(toBinary(desc, message)));
      }),
    );
  },
);

it('skips fields that it does not know', () => {
  const known = toBinary(init.ResizeSchema, create(init.ResizeSchema, { rows: 3, columns: 4 }));
  const unknown = Buffer.from([0x9a, 0x06, 2, 1, 2, 0xa0, 0x06, 5, 0xad, 0x06, 1, 2, 3, 4]);
  expect(decode(schema, 'drover.init.v1.Resize', Buffer.concat([unknown, known]))).toMatchObject({ rows: 3, columns: 4 });
});

it('refuses what is cut or malformed, and never hangs or crashes', () => {
  fc.assert(
    fc.property(bytes, (garbage) => {
      try {
        decode(schema, 'drover.init.v1.ExecRequest', garbage);
      } catch (error) {
        expect(error).toMatchObject({ code: 'protocol-violation' });
      }
    }),
  );
});
