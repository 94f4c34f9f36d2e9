import { fromBinary, toBinary, type DescMessage, type DescMethod, type MessageShape } from '@bufbuild/protobuf';
import type { MethodDefinition } from '@grpc/grpc-js';
import { TunnelFrameSchema, type TunnelFrame } from './generated/drover/link/v1/link_pb.ts';

/** grpc-js's form of a generated method. Messages are protobuf-es shapes on both sides. */
export function methodDefinition<I extends DescMessage, O extends DescMessage>(
  method: DescMethod & { readonly input: I; readonly output: O },
): MethodDefinition<MessageShape<I>, MessageShape<O>> {
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    requestStream: method.methodKind === 'client_streaming' || method.methodKind === 'bidi_streaming',
    responseStream: method.methodKind === 'server_streaming' || method.methodKind === 'bidi_streaming',
    requestSerialize: (message) => serialize(method.input, message),
    requestDeserialize: (bytes) => fromBinary(method.input, bytes),
    responseSerialize: (message) => serialize(method.output, message),
    responseDeserialize: (bytes) => fromBinary(method.output, bytes),
  };
}

function serialize<D extends DescMessage>(schema: D, message: MessageShape<D>): Buffer {
  if ((schema as DescMessage) === TunnelFrameSchema) {
    const { frame } = message as unknown as TunnelFrame;
    if (frame.case === 'data') return serializeTunnelData(frame.value);
  }
  const bytes = toBinary(schema, message);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The key of `TunnelFrame.data`: field 2, wire type 2 (length-delimited). */
const dataKey = 0x12;

/**
 * Serializes a TunnelFrame with data, which carries nearly every byte of the link, with a single copy. A protobuf writer doubles its buffer
 * until the frame fits, and then copies it again. Exported for its test.
 */
export function serializeTunnelData(data: Uint8Array): Buffer {
  const length: number[] = [];
  let rest = data.byteLength;
  for (; rest > 0x7f; rest >>>= 7) length.push((rest & 0x7f) | 0x80);
  length.push(rest);
  const bytes = Buffer.allocUnsafe(1 + length.length + data.byteLength);
  bytes[0] = dataKey;
  bytes.set(length, 1);
  bytes.set(data, 1 + length.length);
  return bytes;
}
