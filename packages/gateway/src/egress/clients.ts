import type { Socket } from 'node:net';
import { evaluate, parseAddress, type EgressRequest } from '@drover/spec/policy';
import { limits } from '../limits.ts';
import { judgeAddress, type PolicyTable } from '../policy/index.ts';

/** One use of a destination: a tunnel, or a request under way. */
export interface Flow extends EgressRequest {
  /** The dialled address; undefined until then. */
  address: string | undefined;
  readonly close: () => void;
}

/** A client's connection to the proxy. */
export interface Client {
  readonly socket: Socket;
  /** The source address, which the kernel's rules enforce. */
  readonly address: string;
  /** The sandbox that the address belonged to when it connected; empty: an unknown address. */
  readonly sandboxId: string;
  readonly flows: Set<Flow>;
}

/** The connections to the proxy, counted by source address, with their flows. */
export class Clients {
  readonly #table: PolicyTable;
  readonly #own: () => ReadonlySet<string>;
  readonly #bySocket = new Map<Socket, Client>();
  readonly #counts = new Map<string, number>();

  constructor(table: PolicyTable, own: () => ReadonlySet<string>) {
    this.#table = table;
    this.#own = own;
  }

  get size(): number {
    return this.#bySocket.size;
  }

  get(socket: Socket): Client | undefined {
    return this.#bySocket.get(socket);
  }

  /** Adds a connection; undefined when its address has too many. */
  add(socket: Socket): Client | undefined {
    if (socket.remoteAddress === undefined) return undefined;
    const address = parseAddress(socket.remoteAddress.replace(/%.*$/, '')).toString();
    const sandboxId = this.#table.get(address)?.sandboxId ?? '';
    const count = this.#counts.get(address) ?? 0;
    if (count >= (sandboxId === '' ? limits.connectionsPerUnknownAddress : limits.connectionsPerSandbox)) return undefined;
    this.#counts.set(address, count + 1);
    const client: Client = { socket, address, sandboxId, flows: new Set() };
    this.#bySocket.set(socket, client);
    socket.once('close', () => {
      this.#bySocket.delete(socket);
      const left = (this.#counts.get(address) ?? 1) - 1;
      if (left === 0) this.#counts.delete(address);
      else this.#counts.set(address, left);
      for (const flow of client.flows) flow.close();
    });
    return client;
  }

  /** Reports whether the table in force allows the flow. */
  allows(client: Client, flow: Flow): boolean {
    const entry = this.#table.get(client.address);
    if (entry === undefined || entry.sandboxId !== client.sandboxId || !evaluate(entry.policy, flow).allowed) return false;
    return flow.address === undefined || judgeAddress(entry.policy, parseAddress(flow.address), flow, this.#own()).allowed;
  }

  /** Closes the flows that the table in force forbids, and the connections of sandboxes that have released their address (G-14). */
  enforce(): number {
    let closed = 0;
    for (const client of this.#bySocket.values()) {
      const owner = this.#table.get(client.address)?.sandboxId ?? '';
      if (owner !== client.sandboxId) {
        client.socket.destroy();
        closed++;
        continue;
      }
      for (const flow of client.flows) {
        if (this.allows(client, flow)) continue;
        flow.close();
        closed++;
      }
    }
    return closed;
  }

  destroyAll(): void {
    for (const socket of this.#bySocket.keys()) socket.destroy();
  }
}
