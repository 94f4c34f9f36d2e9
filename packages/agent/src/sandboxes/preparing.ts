import { create } from '@bufbuild/protobuf';
import { DroverError, parseName, type SandboxId } from '@drover/foundation';
import { createKeyAndRequest, type KeyAndRequest, type Names } from '@drover/pki';
import { link, type sandbox } from '@drover/protocol';
import type { ImageHandle, Images, PullProgress } from '../images/images.ts';
import { defaultPids } from '../limits.ts';
import type { Network } from '../network/network.ts';
import type { CreateRequest, NetworkAttachment } from '../runtimes/runtime.ts';
import type { VolumeStore } from '../volumes/index.ts';
import { stopGraceMs } from './ending.ts';
import { resolveMain } from './process.ts';
import type { SandboxRecord } from './record.ts';
import { makeRunDirectory, runDirectoryOf, writeStartMaterial } from './run-directory.ts';
import type { SignSandboxCertificate } from './sandboxes.ts';
import { placeSecrets, secretsTmpfsBytes } from './secrets.ts';
import type { Standby } from './standbys.ts';

/** What a start is made of. */
export interface StartOptions {
  /** Holds `records/` and `run/`. */
  readonly stateDirectory: string;
  readonly images: Images;
  readonly volumes: Pick<VolumeStore, 'mount' | 'full'>;
  readonly network: Network;
  readonly initDirectory: string;
  readonly names: Names;
  readonly sign: SignSandboxCertificate;
  /** How programs in the sandbox find the egress proxy: `HTTP_PROXY=…`. */
  readonly gatewayEnvironment: (attachment: NetworkAttachment, hostname: string) => readonly string[];
  /** Source directories that sandboxes may mount; nothing else may. */
  readonly allowedMounts: readonly string[];
}

export interface PreparedStart {
  readonly request: CreateRequest;
  readonly imageDigest: string;
  readonly startCount: number;
  /** Resolves when the run directory is complete and the policy in force. Ends with `signal`, rejected; it may be left to itself. */
  readonly completed: Promise<void>;
  /** Resolves when nothing is being done for that any more, whatever became of it. */
  readonly settled: Promise<void>;
}

/**
 * Brings together what one start of a sandbox needs: its image, held; an address; and a run directory. What init waits for, its key and
 * certificate, the config, and its policy in force, is still being made when this resolves: init's own start takes longer than that.
 * What fails here is taken back by the caller. The request has the standby when the sandbox can be made of it.
 */
export async function prepareStart(
  options: StartOptions,
  record: SandboxRecord,
  secretValues: readonly sandbox.SecretValue[],
  progress: (progress: link.CommandProgress) => void,
  standby: Pick<Standby, 'id' | 'network' | 'key'> | undefined,
  signal: AbortSignal,
): Promise<PreparedStart> {
  const { id, spec } = record;
  const identity = certify(options.sign, id, standby?.key, signal);
  // Looked at further down, when there is something to be done with it.
  identity.catch(() => undefined);
  const [image, network] = await Promise.all([
    holdImage(options.images, id, spec.image, progress, signal),
    options.network.acquire(id, standby?.network),
    makeRunDirectory(options.stateDirectory, id, Number(spec.resources?.diskBytes ?? 0n)),
  ]);
  const request: CreateRequest = {
    ...(await requestOf(options, record, image, network)),
    // It cannot leave its network; the sandbox may have had one of its own before.
    ...(standby?.network.namespacePath === network.namespacePath && { standby: standby.id }),
  };
  const startCount = record.startCount + 1;
  const secrets = placeSecrets(spec.secrets, secretValues);
  const main = resolveMain(spec, image.config, options.gatewayEnvironment(network, request.hostname), secrets.env);
  const written = identity.then(
    async (signed) =>
      await writeStartMaterial(request.runDirectory, {
        sandboxId: id,
        project: record.project,
        name: record.name,
        control: { host: network.gatewayAddress, port: network.controlPort },
        hostname: request.hostname,
        address: network.address,
        controlPlaneUri: options.names.controlPlane(),
        main,
        secrets: secrets.files,
        idleStopMs: Number(spec.idleStopSeconds) * 1000,
        stopGraceMs: stopGraceMs(spec.stopGraceMs),
        startCount,
        ...signed,
      }),
  );
  const inForce = putInForce(options.network, record);
  const completed = Promise.all([written, inForce]).then(() => undefined);
  completed.catch(() => undefined);
  const settled = Promise.allSettled([written, inForce]).then(() => undefined);
  return { request, imageDigest: image.digest, startCount, completed, settled };
}

/** Before anything of the user's runs in it: the first packet meets the cut (I-4), and what it may reach it reaches. Until then, nothing. */
async function putInForce(network: Network, { id, spec, networkCut, registrationClosed }: SandboxRecord): Promise<void> {
  await Promise.all([
    network.applyPolicy(id, spec.allow),
    network.setCut(id, networkCut),
    network.setRegistrationClosed(id, registrationClosed),
  ]);
}

async function holdImage(
  images: Images,
  id: SandboxId,
  reference: string,
  progress: (progress: link.CommandProgress) => void,
  signal: AbortSignal,
): Promise<ImageHandle> {
  const onProgress = (p: PullProgress): void =>
    progress(
      create(link.CommandProgressSchema, {
        message: p.message,
        done: BigInt(p.doneBytes),
        total: BigInt(p.totalBytes),
        layersDone: p.doneLayers,
        layersTotal: p.totalLayers,
      }),
    );
  const image = await images.ensure(reference, { signal, onProgress });
  // A start that failed meanwhile has let go of it already.
  signal.throwIfAborted();
  await images.hold(image.digest, id);
  return image;
}

/** I-6: the key is made here and stays; the control plane signs. */
async function certify(
  sign: SignSandboxCertificate,
  id: SandboxId,
  key: KeyAndRequest | undefined,
  signal: AbortSignal,
): Promise<{ certificatePem: string; caPem: string; keyPem: string; bootstrapToken: string }> {
  const { keyPem, csrDer } = key ?? (await createKeyAndRequest());
  const { certificatePem, caPem, bootstrapToken } = await sign(id, csrDer, signal);
  return { certificatePem, caPem, keyPem, bootstrapToken };
}

async function requestOf(
  options: StartOptions,
  record: SandboxRecord,
  image: ImageHandle,
  network: NetworkAttachment,
): Promise<CreateRequest> {
  const { spec, id } = record;
  return {
    id,
    hostname: spec.hostname === '' ? parseName(record.name) : spec.hostname,
    layers: image.layers,
    ...(image.rootLayer !== undefined && { rootLayer: image.rootLayer }),
    ...(image.foreignLayer !== undefined && { foreignLayer: image.foreignLayer }),
    submounts: image.submounts,
    network,
    limits: {
      cpuMillis: spec.resources?.cpuMillis ?? 0,
      memoryBytes: Number(spec.resources?.memoryBytes ?? 0n),
      diskBytes: Number(spec.resources?.diskBytes ?? 0n),
      pids: spec.resources?.pids || defaultPids,
      shmBytes: Number(spec.resources?.shmBytes ?? 0n),
    },
    mounts: await Promise.all(spec.mounts.map(async (mount) => await mountOf(mount, options))),
    ...secretsTmpfsBytes(spec.secrets),
    initDirectory: options.initDirectory,
    runDirectory: runDirectoryOf(options.stateDirectory, id),
  };
}

async function mountOf(mount: sandbox.BindMount, options: StartOptions): Promise<CreateRequest['mounts'][number]> {
  if (mount.volume === '') return allowedMount(mount, options.allowedMounts);
  return { source: await options.volumes.mount(mount.volume), target: mount.target, readOnly: mount.readOnly };
}

function allowedMount(mount: sandbox.BindMount, roots: readonly string[]): { source: string; target: string; readOnly: boolean } {
  const inside = roots.some((root) => mount.source === root || mount.source.startsWith(`${root}/`));
  if (!inside || mount.source.split('/').includes('..')) {
    throw new DroverError('permission-denied', `the directory ${mount.source} may not be mounted on this host`, {
      hint: "the host's administrator allows directories with drover agent --allow-mount DIR",
    });
  }
  return { source: mount.source, target: mount.target, readOnly: mount.readOnly };
}
