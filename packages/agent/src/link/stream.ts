import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { DroverError, version, type Clock, type HostId, type Logger } from '@drover/foundation';
import { link, methodDefinition, sandbox } from '@drover/protocol';
import type { Client, ClientDuplexStream, StatusObject } from '@grpc/grpc-js';
import { outgoingFrames, welcomeTimeoutMs } from '../limits.ts';
import type { CommandRunner, Replies } from './commands.ts';
import type { HostInfo } from './host-info.ts';
import type { UnsentEvents } from './host-events.ts';
import type { UnsentObservations } from './observations.ts';
import type { Signer } from './signer.ts';

const connectMethod = methodDefinition(link.HostLinkService.method.connect);

/** How a stream ended. */
export interface Ending {
  readonly reason: string;
  readonly goAway: link.GoAway | undefined;
  /** When it was welcomed. Milliseconds since the epoch; undefined when it never was. */
  readonly since: number | undefined;
}

export interface StreamDependencies {
  readonly hostId: HostId;
  readonly info: HostInfo;
  readonly commands: CommandRunner;
  readonly signer: Signer;
  readonly unsent: UnsentObservations;
  readonly events: UnsentEvents;
  readonly sandboxes: () => readonly sandbox.SandboxObservation[];
  readonly agentInstance: string;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly onWelcome: (welcome: link.Welcome) => void;
  /** Called with each heartbeat; must not throw. */
  readonly onBeat: () => void;
}

/** One Connect stream from its Register to its end. Nothing of it outlives the stream. */
export class AgentStream implements Replies {
  readonly #dependencies: StreamDependencies;
  readonly #call: ClientDuplexStream<link.HostFrame, link.ControlFrame>;
  readonly #life = new AbortController();
  readonly #ended = Promise.withResolvers<Ending>();
  #since: number | undefined;
  #goAway: link.GoAway | undefined;
  #flushing = false;

  constructor(client: Client, dependencies: StreamDependencies) {
    this.#dependencies = dependencies;
    this.#call = client.makeBidiStreamRequest(connectMethod.path, connectMethod.requestSerialize, connectMethod.responseDeserialize);
    this.#call.on('data', ({ frame }: link.ControlFrame) => this.#receive(frame));
    // The status event follows, with the same.
    this.#call.on('error', () => undefined);
    this.#call.on('status', (status: StatusObject) => this.#finish(status.details === '' ? `status ${status.code}` : status.details));
    this.#call.on('drain', () => this.observed());
  }

  /** Registers, then serves until the stream ends. Never rejects. */
  async run(signal: AbortSignal): Promise<Ending> {
    const stop = (): void => this.#call.cancel();
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) stop();
    try {
      await this.#register();
      void this.#awaitWelcome();
    } catch (error) {
      this.#dependencies.logger.error({ err: error }, 'this host cannot describe itself');
      this.#finish(DroverError.from(error).message);
      this.#call.cancel();
    }
    try {
      return await this.#ended.promise;
    } finally {
      signal.removeEventListener('abort', stop);
    }
  }

  async #register(): Promise<void> {
    const { hostId, info, sandboxes, unsent, agentInstance } = this.#dependencies;
    const described = await info.describe();
    // The report contains all waiting observations (L-6); later changes are sent after the Welcome.
    unsent.take();
    this.#send({
      case: 'register',
      value: {
        hostId,
        hostname: described.hostname,
        labels: { ...described.labels },
        zone: described.zone,
        capacity: {
          cpuMillis: described.capacity.cpuMillis,
          memoryBytes: BigInt(described.capacity.memoryBytes),
          diskBytes: BigInt(described.capacity.diskBytes),
          slots: described.capacity.slots,
        },
        runtimes: [...described.runtimes],
        agentVersion: version,
        bootId: described.bootId,
        sandboxes: [...sandboxes()],
        agentInstance,
      },
    });
  }

  async #awaitWelcome(): Promise<void> {
    try {
      await this.#dependencies.clock.sleep(welcomeTimeoutMs, this.#life.signal);
    } catch {
      return; // it ended
    }
    if (this.#since !== undefined) return;
    this.#finish('the control plane did not answer the registration in time');
    this.#call.cancel();
  }

  #receive(frame: link.ControlFrame['frame']): void {
    if (this.#life.signal.aborted) return;
    switch (frame.case) {
      case 'welcome':
        return this.#welcomed(frame.value);
      case 'command':
        // L-18: it runs on its own; this loop goes on.
        return this.#dependencies.commands.run(frame.value, this);
      case 'signingResponse':
        return this.#dependencies.signer.answered(frame.value);
      case 'goAway':
        this.#goAway = frame.value;
        return;
      case undefined:
        // A frame of a newer control plane: nothing that waits for an answer.
        return;
    }
  }

  #welcomed(welcome: link.Welcome): void {
    if (this.#since !== undefined) return;
    const { clock, signer, onWelcome } = this.#dependencies;
    this.#since = clock.now();
    onWelcome(welcome);
    signer.connected((request) => void this.#send({ case: 'signingRequest', value: request }));
    this.observed();
    void this.#beat(welcome.heartbeatMs);
  }

  async #beat(everyMs: number): Promise<void> {
    const { clock, info, logger, onBeat, sandboxes } = this.#dependencies;
    const { signal } = this.#life;
    for (let sequence = 1n; !signal.aborted; sequence++) {
      try {
        const load = await info.load();
        // Behind a slow control plane another heartbeat would only be one more frame in the way.
        if (this.#call.writableLength < outgoingFrames) {
          let running = 0;
          for (const { state } of sandboxes()) if (state === sandbox.SandboxState.RUNNING) running++;
          this.#send({
            case: 'heartbeat',
            value: {
              sequence,
              sentAt: timestampFromMs(clock.now()),
              loadMilli: load.loadMilli,
              memoryAvailableBytes: BigInt(load.memoryAvailableBytes),
              diskAvailableBytes: BigInt(load.diskAvailableBytes),
              sandboxesRunning: running,
            },
          });
        }
      } catch (error) {
        logger.error({ err: error }, 'a heartbeat could not be made');
      }
      onBeat();
      try {
        await clock.sleep(everyMs, signal);
      } catch {
        return; // it ended
      }
    }
  }

  /** Sends the observations and events that wait, as soon as the stream takes them. */
  observed(): void {
    const { unsent, events } = this.#dependencies;
    if (this.#flushing || this.#since === undefined || unsent.size + events.size === 0) return;
    this.#flushing = true;
    // What is observed in the same turn goes in one frame.
    setImmediate(() => {
      this.#flushing = false;
      if (this.#life.signal.aborted || this.#call.writableNeedDrain) return; // the next Register or `drain` sends it
      if (unsent.size > 0) this.#send({ case: 'observations', value: { sandboxes: [...unsent.take()] } });
      if (events.size > 0) this.#send({ case: 'events', value: events.take() });
    });
  }

  result(result: link.CommandResult): boolean {
    return this.#send({ case: 'result', value: result });
  }

  progress(progress: link.CommandProgress): void {
    // Progress is for a person: a busy stream skips it, since the next report is newer.
    if (!this.#call.writableNeedDrain) this.#send({ case: 'progress', value: progress });
  }

  #send(frame: NonNullable<MessageInitShape<typeof link.HostFrameSchema>['frame']>): boolean {
    if (this.#life.signal.aborted) return false;
    this.#call.write(create(link.HostFrameSchema, { frame }));
    return true;
  }

  #finish(reason: string): void {
    if (this.#life.signal.aborted) return;
    this.#life.abort(new DroverError('unavailable', reason));
    this.#dependencies.signer.connected(undefined);
    this.#ended.resolve({ reason: this.#goAway?.message || reason, goAway: this.#goAway, since: this.#since });
  }
}
