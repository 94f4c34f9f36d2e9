import { ScalarType, type DescField, type DescMessage } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';

/**
 * InitService's messages as a table for `codec.ts`, made from the generated descriptors. The bundle holds the table itself
 * (bundle.ts runs this when it builds): in PID 1 of every sandbox, protobuf-es with its descriptors costs 20 ms of start-up and 1.5 MB.
 */
export interface WireSchema {
  readonly service: string;
  /** By method name: the names of its messages. */
  readonly methods: Readonly<Record<string, { readonly input: string; readonly output: string }>>;
  readonly messages: Readonly<Record<string, readonly WireField[]>>;
}

export interface WireField {
  readonly no: number;
  readonly name: string;
  readonly type: 'uint32' | 'int32' | 'uint64' | 'bool' | 'string' | 'bytes' | 'message';
  /** The type's name when it is a message. */
  readonly message?: string;
  readonly repeated?: true;
  /** The property of its oneof, when it is in one. */
  readonly oneof?: string;
}

/** @throws {Error} when the proto file uses what the codec does not know; seen at build time and by the tests */
export function describeInitService(): WireSchema {
  const messages: Record<string, WireField[]> = {};
  const add = (message: DescMessage): string => {
    const name = message.typeName;
    if (messages[name] !== undefined) return name;
    messages[name] = [];
    messages[name].push(...message.fields.map((field) => describeField(field, add)));
    return name;
  };
  const methods = init.InitService.methods.map(
    (method) => [method.name, { input: add(method.input), output: add(method.output) }] as const,
  );
  return { service: init.InitService.typeName, methods: Object.fromEntries(methods), messages };
}

const scalars: Partial<Record<ScalarType, WireField['type']>> = {
  [ScalarType.UINT32]: 'uint32',
  [ScalarType.INT32]: 'int32',
  [ScalarType.UINT64]: 'uint64',
  [ScalarType.INT64]: 'uint64',
  [ScalarType.BOOL]: 'bool',
  [ScalarType.STRING]: 'string',
  [ScalarType.BYTES]: 'bytes',
};

function describeField(field: DescField, add: (message: DescMessage) => string): WireField {
  const base = { no: field.number, name: field.localName, ...(field.oneof === undefined ? {} : { oneof: field.oneof.localName }) };
  if (field.fieldKind === 'message') return { ...base, type: 'message', message: add(field.message) };
  if (field.fieldKind === 'enum') return { ...base, type: 'int32' };
  if (field.fieldKind === 'scalar') {
    const type = scalars[field.scalar];
    if (type !== undefined && (field.oneof !== undefined || !field.proto.proto3Optional)) return { ...base, type };
  }
  if (field.fieldKind === 'list') {
    // Numbers would be packed, which the codec does not do.
    if (field.listKind === 'message') return { ...base, type: 'message', message: add(field.message), repeated: true };
    if (field.listKind === 'scalar' && field.scalar === ScalarType.STRING) return { ...base, type: 'string', repeated: true };
  }
  throw new Error(`${String(field)}: init's codec does not know this kind of field; teach it in packages/init/src/wire`);
}

export const schema: WireSchema = describeInitService();
