import { create, type MessageShape } from '@bufbuild/protobuf';
import { DroverError, hasCode, isErrorCode } from '@drover/foundation';
import { gatewayv1, methodDefinition } from '@drover/protocol';
import { Client, credentials, type MethodDefinition, type ServiceError } from '@grpc/grpc-js';
import { limits } from '../limits.ts';
import { updateToWire, type SandboxPolicy, type TableUpdate } from '../policy/index.ts';

export type GatewayRefusal = MessageShape<typeof gatewayv1.RefusalSchema>;
export type GatewayHealth = MessageShape<typeof gatewayv1.HealthResponseSchema>;

/**
 * The agent's end of the gateway's control socket. It knows the table that the gateway confirmed last, and sends only what differs from
 * it. Entries count as unchanged while their `policy` is the same object.
 */
export class GatewayClient {
  readonly #client: Client;
  /** Undefined: unknown; the next apply asks for the version and sends the whole table. */
  #confirmed: { readonly version: bigint; readonly policies: ReadonlyMap<string, SandboxPolicy> } | undefined;

  constructor(socket: string) {
    this.#client = new Client(`unix:${socket}`, credentials.createInsecure(), {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.initial_reconnect_backoff_ms': 50,
      'grpc.max_reconnect_backoff_ms': 100,
      'grpc.max_send_message_length': limits.controlMessageBytes,
      'grpc.enable_http_proxy': 0,
    });
  }

  /** The version of the table that the gateway confirmed last; undefined when another one may be in force. */
  get confirmedVersion(): bigint | undefined {
    return this.#confirmed?.version;
  }

  /**
   * Puts a table in force. Calls must not overlap.
   * @throws {DroverError} invalid-argument, too-large as the gateway says; unavailable when it does not answer in `timeoutMs`
   */
  async apply(policies: readonly SandboxPolicy[], timeoutMs = 5000): Promise<void> {
    const confirmed = this.#confirmed;
    const table = new Map(policies.map((policy) => [policy.address, policy]));
    // Whatever becomes of this apply, the next one knows only what was confirmed.
    this.#confirmed = undefined;
    if (confirmed !== undefined) {
      const version = confirmed.version + 1n;
      try {
        await this.#send({ version, base: confirmed.version, ...difference(confirmed.policies, table) }, timeoutMs);
        this.#confirmed = { version, policies: table };
        return;
      } catch (error) {
        // This gateway is not the one that confirmed.
        if (!hasCode(error, 'conflict')) throw error;
      }
    }
    const version = (await this.health()).version + 1n;
    await this.#send({ version, base: undefined, policies, removed: [] }, timeoutMs);
    this.#confirmed = { version, policies: table };
  }

  async #send(update: TableUpdate, timeoutMs: number): Promise<void> {
    await this.#call(methodDefinition(gatewayv1.GatewayService.method.applyPolicies), updateToWire(update), timeoutMs);
  }

  /** @throws {DroverError} unavailable */
  async health(timeoutMs = 2000): Promise<GatewayHealth> {
    return await this.#call(methodDefinition(gatewayv1.GatewayService.method.health), create(gatewayv1.HealthRequestSchema), timeoutMs);
  }

  /** Calls `onRefusal` for each report until the call ends; resolves then, whatever ended it. */
  async watchRefusals(onRefusal: (refusal: GatewayRefusal) => void, signal: AbortSignal): Promise<void> {
    const method = methodDefinition(gatewayv1.GatewayService.method.watchRefusals);
    const request = create(gatewayv1.WatchRefusalsRequestSchema);
    const call = this.#client.makeServerStreamRequest(method.path, method.requestSerialize, method.responseDeserialize, request);
    const cancel = (): void => call.cancel();
    signal.addEventListener('abort', cancel, { once: true });
    if (signal.aborted) cancel();
    call.on('data', onRefusal);
    // The status event follows every end, with the same reason.
    call.on('error', () => undefined);
    await new Promise<void>((resolve) => call.once('status', () => resolve()));
    signal.removeEventListener('abort', cancel);
  }

  close(): void {
    this.#client.close();
  }

  async #call<I, O>(method: MethodDefinition<I, O>, request: I, timeoutMs: number): Promise<O> {
    return await new Promise<O>((resolve, reject) => {
      this.#client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        { deadline: Date.now() + timeoutMs },
        (error, answer) => {
          if (answer !== undefined && error === null) resolve(answer);
          else reject(fromService(error));
        },
      );
    });
  }
}

/** The entries that `to` adds or changes, and the addresses that it has no more. */
function difference(
  from: ReadonlyMap<string, SandboxPolicy>,
  to: ReadonlyMap<string, SandboxPolicy>,
): Pick<TableUpdate, 'policies' | 'removed'> {
  const isKnown = ({ address, sandboxId, policy }: SandboxPolicy): boolean => {
    const known = from.get(address);
    return known?.sandboxId === sandboxId && known.policy === policy;
  };
  return {
    policies: [...to.values()].filter((entry) => !isKnown(entry)),
    removed: [...from.keys()].filter((address) => !to.has(address)),
  };
}

function fromService(error: ServiceError | null): DroverError {
  const code = String(error?.metadata.get('drover-code')[0] ?? '');
  const hint = error?.metadata.get('drover-hint')[0];
  const details = error?.details ?? 'no answer';
  return new DroverError(
    isErrorCode(code) ? code : 'unavailable',
    isErrorCode(code) ? details : `the gateway does not answer (${details})`,
    {
      ...(hint === undefined ? { hint: 'see the gateway in the log' } : { hint: decodeURIComponent(String(hint)) }),
      cause: error,
    },
  );
}
