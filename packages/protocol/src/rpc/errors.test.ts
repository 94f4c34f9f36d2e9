import { create } from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';
import { DroverError, errorCodes, type ErrorCode } from '@drover/foundation';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { errorFromWire, errorToWire, link } from '../index.ts';
import { maxErrorLength } from '../limits.ts';
import { fromConnectError, publicError, publicErrorToWire, toConnectError } from './errors.ts';

describe('errors across processes', () => {
  test('keep code, message and hint, but not the cause', () => {
    const error = new DroverError('image-not-found', 'there is no such image', { hint: 'look at its name', cause: new Error('secret') });
    const arrived = errorFromWire(errorToWire(error));
    expect(arrived).toMatchObject({ code: 'image-not-found', message: 'there is no such image', hint: 'look at its name' });
    expect(arrived.cause).toBeUndefined();
  });

  test('an unknown code becomes internal', () => {
    expect(errorFromWire(create(link.ErrorSchema, { code: 'from-the-future', message: 'x' }))).toMatchObject({
      code: 'internal',
      message: 'x',
      hint: undefined,
    });
  });

  test('have the same code, message, hint and status after a call', () => {
    const codes = fc.constantFrom(...(Object.keys(errorCodes) as ErrorCode[]));
    fc.assert(
      fc.property(codes, fc.string(), fc.option(fc.string({ minLength: 1 }), { nil: undefined }), (code, message, hint) => {
        const error = new DroverError(code, message, hint === undefined ? {} : { hint });
        const sent = toConnectError(error);
        expect(sent.code).toBe(error.status);
        expect(fromConnectError(sent)).toMatchObject({ code, message, hint });
      }),
    );
  });

  test('have a bounded length, regardless of the peer', () => {
    const long = 'x'.repeat(3 * maxErrorLength);
    const { message, hint } = errorFromWire(create(link.ErrorSchema, { code: 'internal', message: long, hint: long }));
    expect([message.length, hint?.length]).toEqual([maxErrorLength + 1, maxErrorLength + 1]);
    expect(errorToWire(new DroverError('internal', long)).message.length).toBe(maxErrorLength + 1);
  });

  test('of earlier versions are read: code and hint as trailers, or the hint in the message', () => {
    const trailers = new ConnectError('it is full', Code.ResourceExhausted, { 'drover-code': 'disk-full', 'drover-hint': 'free%20some' });
    expect(fromConnectError(trailers)).toMatchObject({ code: 'disk-full', message: 'it is full', hint: 'free some' });
    const raw = new ConnectError('it is full', Code.ResourceExhausted, { 'drover-code': 'disk-full', 'drover-hint': '100%' });
    expect(fromConnectError(raw).hint).toBe('100%');
    expect(errorFromWire(create(link.ErrorSchema, { code: 'disk-full', message: 'it is full — free some' })).message).toContain(
      'free some',
    );
  });

  test('are found when Connect wrapped them, and a bare status has a code', () => {
    const own = new DroverError('name-taken', 'taken');
    expect(fromConnectError(ConnectError.from(own))).toBe(own);
    expect(fromConnectError(new ConnectError('gone', Code.Unavailable))).toMatchObject({ code: 'unavailable', message: 'gone' });
  });
});

describe('errors of an unknown kind', () => {
  test('reach a peer as an id, and the log unchanged', () => {
    const logged: Record<string, unknown>[] = [];
    const secret = new TypeError('cannot read /root/.ssh/id_ed25519');
    const wire = publicErrorToWire(secret, { error: (fields) => logged.push(fields) }, { hostId: 'h-1' });
    expect(wire).toMatchObject({ code: 'internal', message: 'an unexpected error occurred' });
    expect(JSON.stringify(wire)).not.toContain('ssh');
    expect(logged).toEqual([{ hostId: 'h-1', err: secret, errorId: expect.any(String) as string }]);
    expect(wire.hint).toContain(String(logged[0]?.['errorId']));
  });

  test.each([
    ['an error of ours', new DroverError('internal', 'the table is empty'), 'internal', 'the table is empty'],
    ['an abort', AbortSignal.abort().reason as Error, 'cancelled', 'the operation was cancelled'],
    ['a full disk', Object.assign(new Error('ENOSPC: /secret'), { code: 'ENOSPC' }), 'disk-full', 'no space left on the disk'],
    ['an error of Connect', new ConnectError('message is too large', Code.ResourceExhausted), 'too-large', 'message is too large'],
  ])('do not include %s', (_, thrown, code, message) => {
    expect(publicError(thrown, () => expect.unreachable())).toMatchObject({ code, message });
  });

  test('keep the message of the system for an errno, which reveals nothing', () => {
    const thrown = Object.assign(new Error("ENOENT: no such file or directory, open '/secret'"), { code: 'ENOENT' });
    expect(publicError(thrown, () => undefined).message).toBe('the system refused it: no such file or directory');
  });
});
