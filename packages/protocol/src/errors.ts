import { create } from '@bufbuild/protobuf';
import { DroverError, isErrorCode } from '@drover/foundation';
import { ErrorSchema, type Error as WireError } from './generated/drover/link/v1/link_pb.ts';

/** A thrown value as it crosses a link; causes and stacks stay behind. */
export function errorToWire(thrown: unknown): WireError {
  const error = DroverError.from(thrown);
  return create(ErrorSchema, { code: error.code, message: error.message, hint: error.hint ?? '' });
}

/** The error that the other side threw; an unknown code becomes internal. */
export function errorFromWire(wire: WireError): DroverError {
  return new DroverError(isErrorCode(wire.code) ? wire.code : 'internal', wire.message, wire.hint === '' ? {} : { hint: wire.hint });
}
