import { fromBinary, toBinary, type DescMessage, type MessageShape } from '@bufbuild/protobuf';
import type { ContextValues } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import type { IdempotencyStore } from '../store/store.ts';
import { maxIdempotencyKeyLength } from '../limits.ts';
import { callerOf } from './auth.ts';

/**
 * Runs a mutating call once per key and caller (L-20): repeated after a lost answer, gives the first answer.
 * @throws {DroverError} idempotency-key-reused, invalid-argument
 */
export async function once<I extends DescMessage, O extends DescMessage>(
  store: IdempotencyStore,
  values: ContextValues,
  method: { readonly input: I; readonly output: O; readonly name: string },
  request: MessageShape<I> & { readonly idempotencyKey: string },
  action: () => Promise<MessageShape<O>>,
): Promise<MessageShape<O>> {
  const key = request.idempotencyKey;
  if (key === '') return await action();
  if (key.length > maxIdempotencyKeyLength) {
    throw new DroverError('invalid-argument', `the idempotency key has ${key.length} characters`, {
      hint: `use at most ${maxIdempotencyKeyLength}`,
    });
  }
  // Scoped to the caller, so that nobody gets another caller's answer.
  const answer = await store.once(`${callerOf(values).name}/${key}`, method.name, toBinary(method.input, request), async () =>
    toBinary(method.output, await action()),
  );
  return fromBinary(method.output, answer);
}
