import { create } from '@bufbuild/protobuf';
import { DroverError, type Logger } from '@drover/foundation';
import { errorToWire, link } from '@drover/protocol';
import { publicErrorToWire } from '@drover/protocol/rpc';
import { commandsPerHost } from '@drover/spec';
import { retainedResults } from '../limits.ts';
import { operator, type OperationDependencies, type Report } from './operations.ts';

/** The stream that the command came on, which receives its result. `result` returns false when the stream has ended. */
export interface Replies {
  result(result: link.CommandResult): boolean;
  progress(progress: link.CommandProgress): void;
}

export interface CommandDependencies extends OperationDependencies {
  readonly logger: Logger;
}

/**
 * Runs commands independently of each other (L-18), each id once (L-19): a command that is repeated while it runs has the same outcome, and
 * later the retained one. A failure is retained until it is reported; a repetition after that is a new try.
 */
export class CommandRunner {
  readonly #logger: Logger;
  readonly #operate: ReturnType<typeof operator>;
  readonly #running = new Map<string, { replies: Replies }>();
  readonly #retained = new Map<string, link.CommandResult>();

  constructor(dependencies: CommandDependencies) {
    this.#logger = dependencies.logger;
    this.#operate = operator(dependencies);
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
    if (this.#retained.size <= retainedResults) return;
    const oldest = this.#retained.keys().next();
    if (!oldest.done) this.#retained.delete(oldest.value);
  }

  /** Never rejects. */
  async #execute(command: link.Command, report: Report): Promise<link.CommandResult> {
    try {
      const { deadline } = command;
      const value = await this.#operate(command.operation, { report, deadline });
      return create(link.CommandResultSchema, { commandId: command.id, ...(value === undefined ? {} : { value }) });
    } catch (error) {
      const wire = publicErrorToWire(error, this.#logger, { commandId: command.id, operation: command.operation.case });
      return create(link.CommandResultSchema, { commandId: command.id, error: wire });
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
