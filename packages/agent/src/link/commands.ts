import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampDate, timestampFromMs } from '@bufbuild/protobuf/wkt';
import { DroverError, parseSandboxId, type Clock, type Logger } from '@drover/foundation';
import { errorToWire, link, publicErrorToWire } from '@drover/protocol';
import { commandsPerHost } from '@drover/spec';
import type { ImageInfo, Images } from '../images/images.ts';
import { rememberedResults } from '../limits.ts';
import type { Sandboxes } from '../sandboxes/sandboxes.ts';
import type { VolumeStore } from '../volumes/index.ts';

type Result = MessageInitShape<typeof link.CommandResultSchema>;
type ResultValue = NonNullable<Result['value']>;
type Report = (progress: link.CommandProgress) => void;

/** Where results go: the stream that the command came on. False when it has ended. */
export interface Replies {
  result(result: link.CommandResult): boolean;
  progress(progress: link.CommandProgress): void;
}

export interface CommandDependencies {
  readonly sandboxes: Sandboxes;
  readonly images: Images;
  readonly volumes: Pick<VolumeStore, 'create' | 'remove' | 'list'>;
  /** Opens the tunnel and gives when it stands (L-30). */
  readonly openTunnel: (command: link.OpenTunnel) => Promise<void>;
  readonly diagnose: (() => Promise<MessageInitShape<typeof link.DiagnosticsSchema>>) | undefined;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Aborts when the agent stops. */
  readonly signal: AbortSignal;
}

/**
 * Runs each command on its own (L-18), once per id (L-19): one that comes again while it runs gets the same outcome, one that
 * comes again later gets the remembered one. A failure is remembered until it was told: asked again after that, it is a new try.
 */
export class CommandRunner {
  readonly #dependencies: CommandDependencies;
  readonly #running = new Map<string, { replies: Replies }>();
  readonly #remembered = new Map<string, link.CommandResult>();

  constructor(dependencies: CommandDependencies) {
    this.#dependencies = dependencies;
  }

  get running(): number {
    return this.#running.size;
  }

  /** Returns at once; the result goes to `replies`. */
  run(command: link.Command, replies: Replies): void {
    const running = this.#running.get(command.id);
    if (running !== undefined) {
      // Repeated on a newer stream: the outcome goes there.
      running.replies = replies;
      return;
    }
    const remembered = this.#remembered.get(command.id);
    if (remembered !== undefined) return this.#reply(remembered, replies);
    if (this.#running.size >= commandsPerHost) {
      const error = new DroverError('queue-full', `${this.#running.size} commands are under way on this host`, {
        hint: 'try again in a moment',
      });
      replies.result(create(link.CommandResultSchema, { commandId: command.id, error: errorToWire(error) }));
      return;
    }
    const entry = { replies };
    this.#running.set(command.id, entry);
    void this.#execute(command, (progress) => entry.replies.progress(progress)).then((result) => {
      this.#running.delete(command.id);
      this.#reply(result, entry.replies, isRead(command.operation.case));
    });
  }

  #reply(result: link.CommandResult, replies: Replies, forget = false): void {
    const told = replies.result(result);
    this.#remembered.delete(result.commandId);
    if (forget || (told && result.error !== undefined)) return;
    this.#remembered.set(result.commandId, result);
    if (this.#remembered.size <= rememberedResults) return;
    const oldest = this.#remembered.keys().next();
    if (!oldest.done) this.#remembered.delete(oldest.value);
  }

  /** Never rejects. */
  async #execute(command: link.Command, report: Report): Promise<link.CommandResult> {
    try {
      const value = await this.#dispatch(command, report);
      return create(link.CommandResultSchema, { commandId: command.id, ...(value === undefined ? {} : { value }) });
    } catch (error) {
      const wire = publicErrorToWire(error, this.#dependencies.logger, { commandId: command.id, operation: command.operation.case });
      return create(link.CommandResultSchema, { commandId: command.id, error: wire });
    }
  }

  async #dispatch(command: link.Command, report: Report): Promise<ResultValue | undefined> {
    const { sandboxes, images, volumes, openTunnel, diagnose } = this.#dependencies;
    const { operation } = command;
    switch (operation.case) {
      case 'create': {
        const tell: Report = (progress) => report(create(link.CommandProgressSchema, { ...progress, commandId: command.id }));
        return { case: 'sandbox', value: await sandboxes.create(operation.value, tell) };
      }
      case 'start':
        return { case: 'sandbox', value: await sandboxes.startAgain(operation.value) };
      case 'stop': {
        const stopped = await sandboxes.stop(operation.value);
        return stopped === undefined ? undefined : { case: 'sandbox', value: stopped };
      }
      case 'pause':
        return { case: 'sandbox', value: await sandboxes.pause(operation.value) };
      case 'resume':
        return { case: 'sandbox', value: await sandboxes.resume(operation.value) };
      case 'setNetworkCut':
        return { case: 'sandbox', value: await sandboxes.setNetworkCut(operation.value) };
      case 'destroy':
        await sandboxes.destroy(operation.value);
        return undefined;
      case 'inspect':
        return { case: 'sandbox', value: await sandboxes.inspect(parseSandboxId(operation.value.sandboxId)) };
      case 'list':
        return { case: 'sandboxes', value: { sandboxes: [...sandboxes.list()] } };
      case 'createVolume':
        await volumes.create(operation.value.name, Number(operation.value.sizeBytes));
        return undefined;
      case 'removeVolume':
        await volumes.remove(operation.value.name);
        return undefined;
      case 'listVolumes': {
        const found = await volumes.list();
        const wire = found.map(({ name, sizeBytes, usedBytes }) => ({ name, sizeBytes: BigInt(sizeBytes), usedBytes: BigInt(usedBytes) }));
        return { case: 'volumes', value: { volumes: wire } };
      }
      case 'pullImage':
        return { case: 'image', value: await this.#pull(command, operation.value, report) };
      case 'openTunnel':
        await openTunnel(operation.value);
        return undefined;
      case 'applyPolicy':
        await sandboxes.applyPolicy(operation.value);
        return undefined;
      case 'collectDiagnostics':
        if (diagnose === undefined) throw unimplemented(operation.case);
        return { case: 'diagnostics', value: await diagnose() };
      case 'listImages':
        return { case: 'images', value: { images: (await images.list()).map(imageToWire) } };
      case 'removeImage':
        await images.remove(operation.value.image);
        return undefined;
      case 'pruneImages': {
        const pruned = await images.prune(Number(operation.value.olderThanSeconds) * 1000);
        return { case: 'pruned', value: { removed: [...pruned.removed], freedBytes: BigInt(pruned.freedBytes) } };
      }
      case 'collectStats':
        return { case: 'stats', value: await sandboxes.stats(operation.value) };
      case 'applyAddons':
        throw unimplemented(operation.case);
      case undefined:
        break;
    }
    // L-14: an operation of a newer control plane.
    throw unimplemented('this operation');
  }

  /** The caller's deadline ends this waiting; the pull goes on for the next one (L-21). */
  async #pull(command: link.Command, pull: link.PullImage, report: Report): Promise<MessageInitShape<typeof link.ImageSchema>> {
    const { images, clock, signal } = this.#dependencies;
    const late = new AbortController();
    const done = new AbortController();
    if (command.deadline !== undefined) {
      const leftMs = Math.max(0, timestampDate(command.deadline).getTime() - clock.now());
      clock.sleep(leftMs, done.signal).then(
        () =>
          late.abort(
            new DroverError('timed-out', `pulling ${pull.image} takes longer than the caller waits`, { hint: 'it goes on; ask again' }),
          ),
        // The pull was faster.
        () => undefined,
      );
    }
    try {
      const handle = await images.ensure(pull.image, {
        signal: AbortSignal.any([signal, late.signal]),
        insecure: pull.insecure,
        policy: 'always',
        onProgress: (progress) =>
          report(
            create(link.CommandProgressSchema, {
              commandId: command.id,
              message: progress.message,
              done: BigInt(progress.doneBytes),
              total: BigInt(progress.totalBytes),
              layersDone: progress.doneLayers,
              layersTotal: progress.totalLayers,
            }),
          ),
      });
      const info = (await images.list()).find((image) => image.digest === handle.digest && image.reference === pull.image);
      return info === undefined ? { reference: pull.image, digest: handle.digest } : imageToWire(info);
    } finally {
      done.abort();
    }
  }
}

/** Reads are repeated, not remembered: their results are large, and a repeated one should be fresh. A tunnel belongs to its stream. */
function isRead(operation: link.Command['operation']['case']): boolean {
  return (
    operation === 'inspect' ||
    operation === 'list' ||
    operation === 'listImages' ||
    operation === 'collectDiagnostics' ||
    operation === 'collectStats' ||
    operation === 'openTunnel'
  );
}

function unimplemented(what: string): DroverError {
  return new DroverError('unimplemented', `this agent does not know ${what}`, { hint: 'update the agent on this host' });
}

function imageToWire(image: ImageInfo): MessageInitShape<typeof link.ImageSchema> {
  return {
    reference: image.reference,
    digest: image.digest,
    sizeBytes: BigInt(image.sizeBytes),
    pulledAt: timestampFromMs(image.pulledAt),
    lastUsedAt: timestampFromMs(image.lastUsedAt),
    sandboxes: image.holders,
  };
}
