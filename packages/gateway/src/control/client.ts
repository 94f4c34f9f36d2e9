import { connect } from 'node:net';
import type { MessageShape } from '@bufbuild/protobuf';
import { createClient, type Client } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { DroverError, hasCode, reasonOf } from '@drover/foundation';
import { gatewayv1 } from '@drover/protocol';
import { ReadableSessionManager } from '@drover/protocol/http2-client';
import { peerError } from '@drover/protocol/rpc';
import { updateToWire, type SandboxPolicy, type TableUpdate } from '../policy/index.ts';

export type GatewayRefusal = MessageShape<typeof gatewayv1.RefusalSchema>;
export type GatewayHealth = MessageShape<typeof gatewayv1.HealthResponseSchema>;

/**
 * The agent's end of the gateway's control socket. It knows the table that the gateway confirmed last, and sends only what differs from
 * it. Entries count as unchanged while their `policy` is the same object.
 */
export class GatewayClient {
  readonly #sessions: ReadableSessionManager;
  readonly #client: Client<typeof gatewayv1.GatewayService>;
  /** Undefined: unknown; the next apply asks for the version and sends the whole table. */
  #confirmed: { readonly version: bigint; readonly policies: ReadonlyMap<string, SandboxPolicy> } | undefined;

  constructor(socket: string) {
    const baseUrl = 'http://gateway';
    this.#sessions = new ReadableSessionManager(baseUrl, {}, { createConnection: () => connect(socket) });
    const transport = createGrpcTransport({ baseUrl, sessionManager: this.#sessions, acceptCompression: [] });
    this.#client = createClient(gatewayv1.GatewayService, transport);
  }

  /** The version of the table that the gateway confirmed last; undefined when another one may be in force. */
  get confirmedVersion(): bigint | undefined {
    return this.#confirmed?.version;
  }

  /**
   * Puts a table in force. Calls must not overlap.
   * @throws {DroverError} invalid-argument, too-large from the gateway; unavailable when it does not respond within `timeoutMs`
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
    await respond(this.#client.applyPolicies(updateToWire(update), { timeoutMs }));
  }

  /** @throws {DroverError} unavailable */
  async health(timeoutMs = 2000): Promise<GatewayHealth> {
    return await respond(this.#client.health({}, { timeoutMs }));
  }

  /** Calls `onRefusal` for each report until the call ends; resolves then, whatever ended it. */
  async watchRefusals(onRefusal: (refusal: GatewayRefusal) => void, signal: AbortSignal): Promise<void> {
    try {
      for await (const refusal of this.#client.watchRefusals({}, { signal })) onRefusal(refusal);
    } catch {
      // The caller watches again, whatever the reason.
    }
  }

  close(): void {
    this.#sessions.abort();
  }
}

/** The response of the gateway. @throws {DroverError} the gateway's error, or unavailable when there is no response */
async function respond<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (thrown) {
    throw (
      peerError(thrown) ??
      new DroverError('unavailable', `the gateway does not respond (${reasonOf(thrown)})`, {
        hint: 'see the gateway in the log',
        cause: thrown,
      })
    );
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
