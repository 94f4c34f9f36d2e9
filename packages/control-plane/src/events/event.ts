/** Every kind of event that there is. */
export const eventKinds = ['sandbox', 'host', 'session', 'identity', 'init', 'network'] as const;

/** What happened, with its subject: written in the transaction that made it happen. */
export interface EventDraft {
  /** One of `eventKinds`. */
  readonly kind: string;
  /** `SandboxCreated`, `HostDown`, … */
  readonly type: string;
  /** The sandbox or host id. */
  readonly subject: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export interface StoredEvent extends EventDraft {
  readonly id: number;
  /** Milliseconds since the epoch. */
  readonly time: number;
}
