import { fromBinary, toBinary, type DescMessage, type MessageShape } from '@bufbuild/protobuf';
import type { ContextValues } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { maxIdempotencyKeyLength } from '../../limits.ts';
import type { Store, Tables } from '../../store/index.ts';
import { callerOf } from './authentication.ts';

/**
 * Runs a mutating call as one transaction, once per key and caller (L-20): a repetition after a lost response returns the first response.
 * `action` receives the tables of the transaction and must not wait for anything else (`Store.together`). Effects outside of the store come
 * after the call, and must be idempotent.
 * @throws {DroverError} idempotency-key-reused, invalid-argument
 */
export async function once<I extends DescMessage, O extends DescMessage>(
  store: Store,
  values: ContextValues,
  method: { readonly input: I; readonly output: O; readonly name: string },
  request: MessageShape<I> & { readonly idempotencyKey: string },
  action: (store: Tables) => Promise<MessageShape<O>>,
): Promise<MessageShape<O>> {
  const key = request.idempotencyKey;
  if (key === '') return await store.together(action);
  if (key.length > maxIdempotencyKeyLength) {
    throw new DroverError('invalid-argument', `the idempotency key has ${key.length} characters`, {
      hint: `use at most ${maxIdempotencyKeyLength}`,
    });
  }
  // Scoped to the caller, so that no caller receives the response of another.
  const scoped = `${callerOf(values).name}/${key}`;
  let made: MessageShape<O> | undefined;
  const answer = await store.idempotency.once(scoped, method.name, toBinary(method.input, request), async (tables) =>
    toBinary(method.output, (made = await action(tables))),
  );
  return made ?? fromBinary(method.output, answer);
}
