/** All kinds of events. */
export const eventKinds = ['sandbox', 'host', 'session', 'identity', 'init', 'network'] as const;

/** An event about a subject, written in the transaction of the change. */
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
