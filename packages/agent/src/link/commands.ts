import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { DroverError, parseSandboxId, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { errorToWire, link, publicErrorToWire } from '@drover/protocol';
import { commandsPerHost } from '@drover/spec';
import { parseSandboxPolicy } from '@drover/spec/policy';
import type { Images, PullProgress } from '../images/index.ts';
import { rememberedResults } from '../limits.ts';
import type { Sandboxes } from '../sandboxes/index.ts';
import type { VolumeStore } from '../volumes/index.ts';
import { commandOf, createOf, imageToWire, startOf, statsToWire } from './convert.ts';

type Result = MessageInitShape<typeof link.CommandResultSchema>;
type ResultValue = NonNullable<Result['value']>;
type Report = (progress: PullProgress) => void;

/** Where results go: the stream that the command came on. False when it has ended. */
export interface Replies {
  result(result: link.CommandResult): boolean;
  progress(progress: link.CommandProgress): void;
}

export interface CommandDependencies {
  readonly sandboxes: Sandboxes;
  readonly images: Images;
  readonly volumes: Pick<VolumeStore, 'create' | 'remove' | 'list'>;
  /** Resolves when the tunnel is open (L-30). */
  readonly openTunnel: (command: link.OpenTunnel) => Promise<void>;
  readonly diagnose: (() => Promise<MessageInitShape<typeof link.DiagnosticsSchema>>) | undefined;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Aborts when the agent stops. */
  readonly signal: AbortSignal;
}

/**
 * Runs commands independently of each other (L-18), each id once (L-19): a command that is repeated while it runs has the same outcome, and
 * later the retained one. A failure is retained until it is reported; a repetition after that is a new try.
 */
export class CommandRunner {
  readonly #dependencies: CommandDependencies;
  readonly #running = new Map<string, { replies: Replies }>();
  readonly #retained = new Map<string, link.CommandResult>();

  constructor(dependencies: CommandDependencies) {
    this.#dependencies = dependencies;
  }

  get running(): number {
    return this.#running.size;
  }

  /** Returns immediately; the result goes to `replies`. */
  run(command: link.Command, replies: Replies): void {
    const running = this.#running.get(command.id);
    if (running !== undefined) {
      // Repeated on a newer stream, which receives the outcome.
      running.replies = replies;
      return;
    }
    const retained = this.#retained.get(command.id);
    if (retained !== undefined) return this.#reply(retained, replies);
    if (this.#running.size >= commandsPerHost) {
      const error = new DroverError('queue-full', `${this.#running.size} commands are under way on this host`, {
        hint: 'try again in a moment',
      });
      replies.result(create(link.CommandResultSchema, { commandId: command.id, error: errorToWire(error) }));
      return;
    }
    const entry = { replies };
    this.#running.set(command.id, entry);
    const report: Report = ({ message, doneBytes, totalBytes, doneLayers, totalLayers }) =>
      entry.replies.progress(
        create(link.CommandProgressSchema, {
          commandId: command.id,
          message,
          done: BigInt(doneBytes),
          total: BigInt(totalBytes),
          layersDone: doneLayers,
          layersTotal: totalLayers,
        }),
      );
    void this.#execute(command, report).then((result) => {
      this.#running.delete(command.id);
      this.#reply(result, entry.replies, isRead(command.operation.case));
    });
  }

  #reply(result: link.CommandResult, replies: Replies, isRead = false): void {
    const isReported = replies.result(result);
    this.#retained.delete(result.commandId);
    if (isRead || (isReported && result.error !== undefined)) return;
    this.#retained.set(result.commandId, result);
    if (this.#retained.size <= rememberedResults) return;
    const oldest = this.#retained.keys().next();
    if (!oldest.done) this.#retained.delete(oldest.value);
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
      case 'create':
        return { case: 'sandbox', value: await sandboxes.create(createOf(operation.value), report) };
      case 'start':
        return { case: 'sandbox', value: await sandboxes.start(startOf(operation.value)) };
      case 'stop': {
        const { sandbox, graceMs } = operation.value;
        const stopped = await sandboxes.stop({ ...commandOf(sandbox), graceMs });
        return stopped === undefined ? undefined : { case: 'sandbox', value: stopped };
      }
      case 'pause':
        return { case: 'sandbox', value: await sandboxes.pause(commandOf(operation.value.sandbox)) };
      case 'resume':
        return { case: 'sandbox', value: await sandboxes.resume(commandOf(operation.value.sandbox)) };
      case 'setNetworkCut': {
        const { sandbox, cut: networkCut, registrationClosed } = operation.value;
        return { case: 'sandbox', value: await sandboxes.setClosure({ ...commandOf(sandbox), networkCut, registrationClosed }) };
      }
      case 'destroy':
        await sandboxes.destroy(commandOf(operation.value.sandbox).id);
        return undefined;
      case 'inspect':
        return { case: 'sandbox', value: sandboxes.inspect(parseSandboxId(operation.value.sandboxId)) };
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
        await sandboxes.applyPolicy(parseSandboxId(operation.value.sandboxId), parseSandboxPolicy(operation.value));
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
        return { case: 'stats', value: statsToWire(await sandboxes.stats(idsOf(operation.value))) };
      case 'applyAddons':
        throw unimplemented(operation.case);
      case undefined:
        break;
    }
    // L-14: an operation of a newer control plane.
    throw unimplemented('this operation');
  }

  /** The caller's deadline ends the waiting; the pull continues for the next caller (L-21). */
  async #pull(command: link.Command, pull: link.PullImage, report: Report): Promise<MessageInitShape<typeof link.ImageSchema>> {
    const { images, clock, signal } = this.#dependencies;
    const late = new AbortController();
    const done = new AbortController();
    if (command.deadline !== undefined) {
      const leftMs = Math.max(0, timestampDate(command.deadline).getTime() - clock.now());
      clock.sleep(leftMs, done.signal).then(
        () =>
          late.abort(
            new DroverError('timed-out', `pulling ${pull.image} takes longer than the caller waits`, { hint: 'it continues; try again' }),
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
        onProgress: report,
      });
      const info = (await images.list()).find((image) => image.digest === handle.digest && image.reference === pull.image);
      return info === undefined ? { reference: pull.image, digest: handle.digest } : imageToWire(info);
    } finally {
      done.abort();
    }
  }
}

/** The results of reads are not retained: they are large, and a repetition should be current. A tunnel belongs to its stream. */
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

function idsOf({ sandboxIds }: link.CollectStats): readonly SandboxId[] | undefined {
  return sandboxIds.length === 0 ? undefined : sandboxIds.map(parseSandboxId);
}
