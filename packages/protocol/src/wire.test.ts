import { create, isFieldSet, toBinary } from '@bufbuild/protobuf';
import { describe, expect, test } from 'vitest';
import { serializeTunnelData } from './grpc.ts';
import { init, link, methodDefinition } from './index.ts';

describe('method definitions for grpc-js', () => {
  test('have the path and the streaming of the proto file', () => {
    expect(methodDefinition(init.InitService.method.logs)).toMatchObject({
      path: '/drover.init.v1.InitService/Logs',
      requestStream: false,
      responseStream: true,
    });
    expect(methodDefinition(link.HostLinkService.method.connect)).toMatchObject({ requestStream: true, responseStream: true });
  });

  test('carry messages both ways', () => {
    const method = methodDefinition(link.HostLinkService.method.connect);
    const frame = create(link.HostFrameSchema, { frame: { case: 'heartbeat', value: { sequence: 7n } } });
    const again = method.requestDeserialize(method.requestSerialize(frame));
    expect(again).toEqual(frame);
    expect(isFieldSet(again, link.HostFrameSchema.field.heartbeat)).toBe(true);
  });
});

test.each([0, 1, 127, 128, 16_383, 16_384, 65_536, 2_097_152])('a tunnel frame of %d bytes is serialized as by protobuf', (length) => {
  const value = Buffer.alloc(length, 'data');
  const frame = create(link.TunnelFrameSchema, { frame: { case: 'data', value } });
  expect(serializeTunnelData(value).equals(toBinary(link.TunnelFrameSchema, frame))).toBe(true);
});
