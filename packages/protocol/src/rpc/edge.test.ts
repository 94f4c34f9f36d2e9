import { create } from '@bufbuild/protobuf';
import { createClient, createContextKey, createRouterTransport, type Client, type ServiceImpl } from '@connectrpc/connect';
import { DroverError, FakeClock } from '@drover/foundation';
import { describe, expect, test } from 'vitest';
import { rpcEdge, type EdgeOptions } from './edge.ts';
import { fromConnectError } from './errors.ts';
import { init } from '../index.ts';

type Line = Record<string, unknown> & { readonly level: string; readonly message: string };
const caller = createContextKey('nobody');

/** A client of an InitService behind the edge, and the lines that it logs. */
function serve(
  implementation: Partial<ServiceImpl<typeof init.InitService>>,
  options: Partial<EdgeOptions> = {},
): { readonly client: Client<typeof init.InitService>; readonly lines: Line[]; readonly clock: FakeClock } {
  const lines: Line[] = [];
  const at =
    (level: string) =>
    (fields: Record<string, unknown>, message: string): void =>
      void lines.push({ ...fields, level, message });
  const logger = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
  const clock = new FakeClock(1_000);
  const edge = rpcEdge({ logger, clock, maxMessageBytes: 1024, ...options });
  const transport = createRouterTransport(({ service }) => void service(init.InitService, implementation), { router: edge });
  return { client: createClient(init.InitService, transport), lines, clock };
}

const never = (): never => {
  throw new DroverError('internal', 'the handler ran');
};

describe('the edge of an RPC server', () => {
  test('logs one line for a call, with the fields of its server and the duration', async () => {
    const { client, lines, clock } = serve(
      {
        listExecs: async () => {
          await clock.advance(5);
          return { execs: [] };
        },
      },
      { fields: ({ contextValues }) => ({ caller: contextValues.get(caller) }) },
    );
    await client.listExecs({});
    expect(lines).toEqual([
      { level: 'debug', message: 'call', method: 'drover.init.v1.InitService/ListExecs', code: 'ok', ms: 5, caller: 'nobody' },
    ]);
  });

  test('runs no handler for an unauthorized caller, and logs the reason without sending it', async () => {
    const authorize = async (): Promise<never> =>
      await Promise.reject(new DroverError('permission-denied', 'no', { cause: new Error('the token is that of another') }));
    const { client, lines } = serve({ listExecs: never, logs: never }, { authorize });
    await expect(client.listExecs({}).catch(fromConnectError)).resolves.toMatchObject({ code: 'permission-denied', message: 'no' });
    await expect(Array.fromAsync(client.logs({})).catch(fromConnectError)).resolves.toMatchObject({ code: 'permission-denied' });
    expect(lines.map(({ level, why }) => [level, why])).toEqual([
      ['warn', 'the token is that of another'],
      ['warn', 'the token is that of another'],
    ]);
  });

  test.each(['unary', 'stream'])('passes code, message and hint of a failed %s call to the caller', async (kind) => {
    const error = new DroverError('exec-not-found', 'there is none', { hint: 'list them' });
    const { client, lines } = serve({
      listExecs: async () => await Promise.reject(error),
      async *logs() {
        yield create(init.LogChunkSchema, { data: new Uint8Array([1]) });
        throw await Promise.resolve(error);
      },
    });
    const call = kind === 'unary' ? client.listExecs({}) : Array.fromAsync(client.logs({}));
    expect(await (call as Promise<unknown>).catch(fromConnectError)).toMatchObject({
      code: 'exec-not-found',
      message: 'there is none',
      hint: 'list them',
    });
    expect(lines).toMatchObject([{ level: 'info', code: 'exec-not-found', message: 'there is none' }]);
  });

  test('sends an id instead of an unknown error, and logs the error under this id in the line of the call', async () => {
    const thrown = new TypeError('cannot read properties of undefined');
    const { client, lines } = serve({ listExecs: async () => await Promise.reject(thrown) });
    const error = fromConnectError(await client.listExecs({}).catch((sent: unknown) => sent));
    expect(error).toMatchObject({ code: 'internal', message: 'an unexpected error occurred' });
    expect(lines).toMatchObject([{ level: 'error', code: 'internal', err: thrown }]);
    expect(error.hint).toContain(String(lines[0]?.['errorId']));
  });

  test('delays an error if its server requests that', async () => {
    const { client, clock } = serve(
      { listExecs: async () => await Promise.reject(new DroverError('internal', 'x')) },
      { beforeError: async (_error, _request, ms) => await clock.sleep(100 - ms) },
    );
    let settled = false;
    const call = client.listExecs({}).catch(() => (settled = true));
    await clock.advance(99);
    expect(settled).toBe(false);
    await clock.advance(1);
    expect(await call).toBe(true);
  });

  test('refuses a message over the limit, and ends calls with the reason of the stop', async () => {
    const stop = new AbortController();
    const { client } = serve(
      {
        async *logs(_request, { signal }) {
          yield create(init.LogChunkSchema);
          await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)));
        },
        signalExec: never,
      },
      { stop: stop.signal },
    );
    expect(await client.signalExec({ execId: 'x'.repeat(2_000) }).catch(fromConnectError)).toMatchObject({ code: 'too-large' });
    const logs = client.logs({})[Symbol.asyncIterator]();
    await logs.next();
    const next = logs.next().catch(fromConnectError);
    stop.abort(new DroverError('unavailable', 'the server stops'));
    expect(await next).toMatchObject({ code: 'unavailable', message: 'the server stops' });
  });
});
