import { timestampMs } from '@bufbuild/protobuf/wkt';
import { counted, DroverError, formatAge, formatBytes } from '@drover/foundation';
import { api, errorFromWire } from '@drover/protocol';
import { parseDurationMs } from '@drover/spec';
import { Listr, type ListrTask } from 'listr2';
import type { Cli } from '../../cli.ts';
import { reportFailures } from '../failures.ts';
import { messageJson } from '../../output/index.ts';
import { atTerminal } from '../../attach.ts';

interface PullFlags {
  readonly host?: string;
  readonly insecure?: boolean;
}

/** pulls on one host or on all, and shows progress for each. Returns the status of the first failure, or 0. */
export async function pull(cli: Cli, [image]: readonly [string], flags: PullFlags): Promise<number> {
  const client = await cli.connect();
  const answers = client.images.pull(image, {
    ...(flags.host !== undefined && { host: flags.host }),
    insecure: flags.insecure === true,
    signal: cli.signal,
  });
  const failures: DroverError[] = [];
  const results: string[] = [];
  // Progress is drawn on stdout, so a pipe, whose stdout carries the result, shows none.
  const show = cli.out.interactive && atTerminal() && !cli.out.json ? new PullProgress(cli) : undefined;
  const last = new Map<string, string>();
  for await (const answer of answers) {
    const where = answer.hostName === '' ? answer.hostId : answer.hostName;
    if (cli.out.json) cli.out.record(messageJson(api.PullImageResponseSchema, answer));
    if (answer.error !== undefined) {
      const error = errorFromWire(answer.error);
      failures.push(new DroverError(error.code, `${where}: ${error.message}`, error.hint === undefined ? {} : { hint: error.hint }));
      show?.end(where, error);
    } else if (answer.image !== undefined) {
      show?.end(where);
      if (!cli.out.json) results.push(`${where}: ${answer.image.digest}`);
    } else {
      show?.update(where, progressText(answer));
      const step = progressStep(answer);
      if (show === undefined && !cli.out.json && last.get(where) !== step) cli.out.note(`${where}: ${progressText(answer)}`);
      last.set(where, step);
    }
  }
  // The results follow the progress lines, which are redrawn until they are closed.
  await show?.close();
  for (const line of results) cli.out.line(line);
  for (const failure of failures) cli.out.error(failure);
  return failures[0]?.exitCode ?? 0;
}

type Progress = Pick<api.PullImageResponse, 'message' | 'done' | 'total' | 'layersDone' | 'layersTotal'>;

/** `pulling X: 3 of 7 layers, 12 MiB of 80 MiB` */
export function progressText({ message, done, total, layersDone, layersTotal }: Progress): string {
  if (layersTotal === 0) return message;
  return `${message}: ${layersDone} of ${layersTotal} layers, ${formatBytes(Number(done))} of ${formatBytes(Number(total))}`;
}

/** In a pipe, progress is printed when this text changes: for each step, each layer and each tenth of the bytes. */
export function progressStep({ message, done, total, layersDone }: Progress): string {
  return `${message} ${layersDone} ${total === 0n ? 0n : (done * 10n) / total}`;
}

/** One redrawn line per host. */
class PullProgress {
  readonly #cli: Cli;
  readonly #hosts = new Map<string, { set: (text: string) => void; end: (error?: Error) => void }>();
  readonly #runs: Promise<unknown>[] = [];

  constructor(cli: Cli) {
    this.#cli = cli;
  }

  update(host: string, text: string): void {
    this.#of(host).set(text);
  }

  end(host: string, error?: Error): void {
    this.#of(host).end(error);
  }

  async close(): Promise<void> {
    for (const { end } of this.#hosts.values()) end();
    await Promise.all(this.#runs);
  }

  #of(host: string): { set: (text: string) => void; end: (error?: Error) => void } {
    const known = this.#hosts.get(host);
    if (known !== undefined) return known;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    let current = '';
    const row = {
      set: (text: string): void => {
        current = text;
      },
      end: (error?: Error): void => (error === undefined ? resolve() : reject(error)),
    };
    this.#hosts.set(host, row);
    const task: ListrTask = {
      title: host,
      task: async (_context, listed) => {
        const timer = setInterval(() => {
          listed.output = current;
        }, 100);
        try {
          await promise;
        } finally {
          clearInterval(timer);
        }
      },
    };
    this.#runs.push(new Listr([task], { exitOnError: false, registerSignalListeners: false }).run());
    if (this.#cli.signal.aborted) resolve();
    this.#cli.signal.addEventListener('abort', () => resolve(), { once: true });
    return row;
  }
}

export async function ls(cli: Cli, _: readonly [], flags: { readonly host?: string }): Promise<number> {
  const client = await cli.connect();
  const { images, failures } = await client.images.list({ ...(flags.host !== undefined && { host: flags.host }), signal: cli.signal });
  cli.out.list(
    images,
    (image) => messageJson(api.HostImageSchema, image),
    [
      { title: 'IMAGE', value: (i) => i.image?.reference ?? '' },
      { title: 'DIGEST', value: (i) => (i.image?.digest ?? '').slice(0, 19) },
      { title: 'SIZE', value: (i) => formatBytes(Number(i.image?.sizeBytes ?? 0n)) },
      { title: 'HOST', value: (i) => i.hostName },
      { title: 'USED', value: (i) => (i.image?.lastUsedAt === undefined ? '' : formatAge(Date.now() - timestampMs(i.image.lastUsedAt))) },
    ],
    'no images; drover run pulls an image on first use',
  );
  return reportFailures(cli, failures);
}

export async function rm(cli: Cli, [references]: readonly [readonly string[]], flags: { readonly host?: string }): Promise<number> {
  const client = await cli.connect();
  let status = 0;
  const removed: string[] = [];
  for (const reference of references) {
    try {
      const { failures } = await client.images.remove(reference, {
        ...(flags.host !== undefined && { host: flags.host }),
        signal: cli.signal,
      });
      const failed = reportFailures(cli, failures);
      if (failed !== 0) status = failed;
      else removed.push(reference);
      if (failed === 0 && !cli.out.json) cli.out.line(reference);
    } catch (thrown) {
      const error = DroverError.from(thrown);
      if (references.length === 1 || cli.signal.aborted) throw error;
      cli.out.error(error);
      status = error.exitCode;
    }
  }
  if (cli.out.json) cli.out.object(removed.map((reference) => ({ reference })));
  return status;
}

export async function prune(cli: Cli, _: readonly [], flags: { readonly host?: string; readonly olderThan?: string }): Promise<number> {
  const olderThanSeconds = flags.olderThan === undefined ? undefined : Math.ceil(parseDurationMs(flags.olderThan) / 1000);
  const client = await cli.connect();
  const answer = await client.images.prune({
    ...(flags.host !== undefined && { host: flags.host }),
    ...(olderThanSeconds !== undefined && { olderThanSeconds }),
    signal: cli.signal,
  });
  if (cli.out.json) cli.out.object(messageJson(api.PruneImagesResponseSchema, answer));
  else cli.out.line(`removed ${counted(answer.removed.length, 'image')}, freed ${formatBytes(Number(answer.freedBytes))}`);
  return reportFailures(cli, answer.failures);
}
