import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { DroverError, parseSandboxId, type Clock } from '@drover/foundation';
import type { link, sandbox } from '@drover/protocol';
import { parseSandboxPolicy } from '@drover/spec/policy';
import { parseStopGraceMs } from '@drover/spec/sandbox';
import type { Images, PullProgress } from '../images/index.ts';
import type { Sandboxes } from '../sandboxes/index.ts';
import type { VolumeStore } from '../volumes/index.ts';
import { commandOf, createOf, imageToWire, startOf, statsToWire } from './convert.ts';

export type ResultValue = NonNullable<MessageInitShape<typeof link.CommandResultSchema>['value']>;
export type Report = (progress: PullProgress) => void;

export interface OperationDependencies {
  readonly sandboxes: Sandboxes;
  readonly images: Images;
  readonly volumes: Pick<VolumeStore, 'create' | 'remove' | 'list'>;
  /** Resolves when the tunnel is open (L-30). */
  readonly openTunnel: (command: link.OpenTunnel) => Promise<void>;
  readonly diagnose: (() => Promise<MessageInitShape<typeof link.DiagnosticsSchema>>) | undefined;
  readonly clock: Clock;
  /** Aborts when the agent stops. */
  readonly signal: AbortSignal;
}

interface Context extends Pick<link.Command, 'deadline'> {
  readonly report: Report;
}

type Operation = link.Command['operation'];
type Handlers<C extends Operation['case']> = {
  readonly [K in NonNullable<C>]: (value: Extract<Operation, { case: K }>['value'], context: Context) => Promise<ResultValue | undefined>;
};

/** Carries out operations. @throws {DroverError} unimplemented for an operation of a newer control plane (L-14) */
export function operator(
  dependencies: OperationDependencies,
): (operation: Operation, context: Context) => Promise<ResultValue | undefined> {
  const handlers: Handlers<Operation['case']> = {
    ...sandboxHandlers(dependencies.sandboxes),
    ...imageHandlers(dependencies),
    ...hostHandlers(dependencies),
  };
  return async (operation, context) => {
    if (operation.case === undefined) throw unimplemented('this operation');
    const handle = handlers[operation.case] as (value: Operation['value'], context: Context) => Promise<ResultValue | undefined>;
    return await handle(operation.value, context);
  };
}

function sandboxHandlers(
  sandboxes: Sandboxes,
): Handlers<
  'create' | 'start' | 'stop' | 'pause' | 'resume' | 'setNetworkCut' | 'destroy' | 'inspect' | 'list' | 'applyPolicy' | 'collectStats'
> {
  const observed = (value: sandbox.SandboxObservation): ResultValue => ({ case: 'sandbox', value });
  return {
    create: async (command, { report }) => observed(await sandboxes.create(createOf(command), report)),
    start: async (command) => observed(await sandboxes.start(startOf(command))),
    stop: async ({ sandbox: ref, graceMs }) => {
      const stopped = await sandboxes.stop({ ...commandOf(ref), graceMs: parseStopGraceMs(graceMs) });
      return stopped === undefined ? undefined : observed(stopped);
    },
    pause: async ({ sandbox: ref }) => observed(await sandboxes.pause(commandOf(ref))),
    resume: async ({ sandbox: ref }) => observed(await sandboxes.resume(commandOf(ref))),
    setNetworkCut: async ({ sandbox: ref, cut: networkCut, registrationClosed }) =>
      observed(await sandboxes.setClosure({ ...commandOf(ref), networkCut, registrationClosed })),
    destroy: async ({ sandbox: ref }) => {
      await sandboxes.destroy(commandOf(ref).id);
      return undefined;
    },
    inspect: async ({ sandboxId }) => await Promise.resolve(observed(sandboxes.inspect(parseSandboxId(sandboxId)))),
    list: async () => await Promise.resolve({ case: 'sandboxes', value: { sandboxes: [...sandboxes.list()] } }),
    applyPolicy: async (command) => {
      await sandboxes.applyPolicy(parseSandboxId(command.sandboxId), parseSandboxPolicy(command));
      return undefined;
    },
    collectStats: async ({ sandboxIds }) => {
      const ids = sandboxIds.length === 0 ? undefined : sandboxIds.map(parseSandboxId);
      return { case: 'stats', value: statsToWire(await sandboxes.stats(ids)) };
    },
  };
}

function imageHandlers({
  images,
  clock,
  signal,
}: Pick<OperationDependencies, 'images' | 'clock' | 'signal'>): Handlers<'pullImage' | 'listImages' | 'removeImage' | 'pruneImages'> {
  return {
    pullImage: async (pull, { report, deadline }) => {
      const waiting = new AbortController();
      const finished = new AbortController();
      if (deadline !== undefined) {
        clock.sleep(Math.max(0, timestampDate(deadline).getTime() - clock.now()), finished.signal).then(
          () =>
            waiting.abort(
              new DroverError('timed-out', `pulling ${pull.image} takes longer than the caller waits`, { hint: 'it continues; try again' }),
            ),
          // The pull was faster.
          () => undefined,
        );
      }
      try {
        // The deadline ends the waiting; the pull continues for the next caller (L-21).
        const options = { signal: AbortSignal.any([signal, waiting.signal]), insecure: pull.insecure, onProgress: report };
        const { digest } = await images.ensure(pull.image, { ...options, policy: 'always' });
        const info = (await images.list()).find((image) => image.digest === digest && image.reference === pull.image);
        return { case: 'image', value: info === undefined ? { reference: pull.image, digest } : imageToWire(info) };
      } finally {
        finished.abort();
      }
    },
    listImages: async () => ({ case: 'images', value: { images: (await images.list()).map(imageToWire) } }),
    removeImage: async ({ image }) => {
      await images.remove(image);
      return undefined;
    },
    pruneImages: async ({ olderThanSeconds }) => {
      const { removed, freedBytes } = await images.prune(Number(olderThanSeconds) * 1000);
      return { case: 'pruned', value: { removed: [...removed], freedBytes: BigInt(freedBytes) } };
    },
  };
}

function hostHandlers({
  volumes,
  openTunnel,
  diagnose,
}: Pick<OperationDependencies, 'volumes' | 'openTunnel' | 'diagnose'>): Handlers<
  'createVolume' | 'removeVolume' | 'listVolumes' | 'openTunnel' | 'collectDiagnostics' | 'applyAddons'
> {
  return {
    createVolume: async ({ name, sizeBytes }) => {
      await volumes.create(name, Number(sizeBytes));
      return undefined;
    },
    removeVolume: async ({ name }) => {
      await volumes.remove(name);
      return undefined;
    },
    listVolumes: async () => {
      const found = await volumes.list();
      const wire = found.map(({ name, sizeBytes, usedBytes }) => ({ name, sizeBytes: BigInt(sizeBytes), usedBytes: BigInt(usedBytes) }));
      return { case: 'volumes', value: { volumes: wire } };
    },
    openTunnel: async (command) => {
      await openTunnel(command);
      return undefined;
    },
    collectDiagnostics: async () => {
      if (diagnose === undefined) throw unimplemented('collectDiagnostics');
      return { case: 'diagnostics', value: await diagnose() };
    },
    applyAddons: async () => await Promise.reject(unimplemented('applyAddons')),
  };
}

function unimplemented(what: string): DroverError {
  return new DroverError('unimplemented', `this agent does not know ${what}`, { hint: 'update the agent on this host' });
}
