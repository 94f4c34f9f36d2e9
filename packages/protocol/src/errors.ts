import { create } from '@bufbuild/protobuf';
import { clip, DroverError, isErrorCode } from '@drover/foundation';
import { ErrorSchema, type Error as WireError } from './generated/drover/link/v1/error_pb.ts';
import { maxErrorLength } from './limits.ts';

/** The form of an error in every API: in a message, or as the detail of a gRPC or Connect status. Causes and stacks are not sent. */
export function errorToWire({ code, message, hint }: DroverError): WireError {
  return create(ErrorSchema, { code, message: clip(message, maxErrorLength), hint: clip(hint ?? '', maxErrorLength) });
}

/** The error of a peer; an unknown code becomes internal. Earlier versions may have appended the hint to the message. */
export function errorFromWire(
  { code, message, hint }: Pick<WireError, 'code' | 'message' | 'hint'>,
  options: { readonly cause?: unknown; readonly maxLength?: number } = {},
): DroverError {
  const { cause, maxLength = maxErrorLength } = options;
  return new DroverError(isErrorCode(code) ? code : 'internal', clip(message, maxLength), {
    ...(hint !== '' && { hint: clip(hint, maxLength) }),
    ...(cause !== undefined && { cause }),
  });
}
