import { abortable, DroverError, parseName, type Clock, type FileRecords, type Logger, type SandboxId } from '@drover/foundation';
import { createKeyAndRequest, type Names } from '@drover/pki';
import type { sandbox } from '@drover/protocol';
import { type Mount as SpecMount } from '@drover/spec';
import type { Backend, Mount, PreparedStart, StartRequest } from '../backends/index.ts';
import { settled } from '../concurrency.ts';
import type { PullProgress } from '../images/index.ts';
import { defaultPids } from '../limits.ts';
import { proxyEnvironment } from '../network/index.ts';
import type { VolumeStore } from '../volumes/index.ts';
import { setClosure } from './closure.ts';
import { resolveMain } from './process.ts';
import type { SandboxRecord } from './record.ts';
import { makeRunDirectory, runDirectoryOf, writeStartMaterial } from './run-directory.ts';
import type { SandboxEvent, SignSandboxCertificate } from './sandboxes.ts';
import { placeSecrets, secretsTmpfsBytes } from './secrets.ts';

/** What the sandboxes of a host share. */
export interface SandboxHost {
  /** Holds `records/` and `run/`. */
  readonly stateDirectory: string;
  readonly volumes: Pick<VolumeStore, 'mount' | 'full'>;
  readonly names: Names;
  readonly sign: SignSandboxCertificate;
  /** Directories of the host that sandboxes may mount. */
  readonly allowedMounts: readonly string[];
  /** The kernel's id of this boot of the host (random/boot_id): a sandbox that was started in another boot ended with it. */
  readonly bootId: string;
  readonly records: FileRecords<SandboxRecord>;
  readonly report: (event: SandboxEvent) => void;
  readonly observed: (observation: sandbox.SandboxObservation) => void;
  /** Drops the sandbox from the table; its record is removed. */
  readonly removed: (id: SandboxId) => void;
  readonly logger: Logger;
  readonly clock: Clock;
  /** The agent's lifetime: work on sandboxes lives under it, never under a command's (L-21, L-23). */
  readonly signal: AbortSignal;
}

/**
 * Makes the run directory of one start and the request for it. The certificate is requested meanwhile, and awaited only by `complete`.
 * @param opening completes the record before init continues
 * @throws {DroverError} permission-denied, failed-precondition, volume-not-found
 */
export async function requestStart(
  host: SandboxHost,
  backend: Backend,
  record: SandboxRecord,
  secretValues: readonly sandbox.SecretValue[],
  onProgress: (progress: PullProgress) => void,
  opening: (prepared: { imageDigest: string; address: string }) => Promise<void>,
  signal: AbortSignal,
): Promise<StartRequest> {
  const { id, spec } = record;
  const secrets = placeSecrets(spec.message.secrets, secretValues);
  const identity = certify(host, id, signal);
  // `complete` awaits it.
  identity.catch(() => undefined);
  const mounts = await Promise.all(spec.mounts.map(async (mount) => await mountOf(mount, host)));
  await makeRunDirectory(host.stateDirectory, id, spec.resources.diskBytes);
  const hostname = spec.hostname === '' ? parseName(record.name) : spec.hostname;
  const runDirectory = runDirectoryOf(host.stateDirectory, id);
  let opened = { imageDigest: '', address: '' };
  const write = async ({ imageConfig, addresses }: PreparedStart, completing: AbortSignal): Promise<void> => {
    const proxy = Object.entries(proxyEnvironment(addresses, hostname)).map(([name, value]) => `${name}=${value}`);
    const main = resolveMain(spec, imageConfig, proxy, secrets.env);
    await writeStartMaterial(runDirectory, {
      sandboxId: id,
      project: record.project,
      name: record.name,
      control: { host: addresses.gatewayAddress, port: addresses.controlPort },
      hostname,
      address: addresses.address,
      controlPlaneUri: host.names.controlPlane(),
      main,
      secrets: secrets.files,
      idleStopMs: spec.idleStopSeconds * 1000,
      stopGraceMs: spec.stopGraceMs,
      startCount: record.startCount + 1,
      ...(await abortable(identity, completing)),
    });
  };
  return {
    id,
    hostname,
    image: spec.message.image,
    limits: { ...spec.resources, pids: spec.resources.pids || defaultPids },
    mounts,
    ...secretsTmpfsBytes(spec.message.secrets),
    runDirectory,
    onProgress,
    complete: async (prepared, completing) => {
      opened = { imageDigest: prepared.imageDigest, address: prepared.addresses.address };
      // Both are in force before anything of the user's runs: the first packet meets the cut (I-4) and the policy.
      await settled(write(prepared, completing), backend.applyPolicy(id, spec.policy), setClosure(backend, id, record));
    },
    opening: async () => await opening(opened),
  };
}

/** I-6: the key is made on this host and stays here; the control plane signs. */
async function certify(
  { sign }: SandboxHost,
  id: SandboxId,
  signal: AbortSignal,
): Promise<{ certificatePem: string; caPem: string; keyPem: string; bootstrapToken: string }> {
  const { keyPem, csrDer } = createKeyAndRequest();
  return { ...(await sign(id, csrDer, signal)), keyPem };
}

async function mountOf({ volume, source, target, readOnly }: SpecMount, host: SandboxHost): Promise<Mount> {
  if (volume !== '') return { source: await host.volumes.mount(volume), target, readOnly };
  const isAllowed = host.allowedMounts.some((root) => source === root || source.startsWith(`${root}/`));
  if (isAllowed) return { source, target, readOnly };
  throw new DroverError('permission-denied', `the directory ${source} may not be mounted on this host`, {
    hint: "the host's administrator allows directories with drover agent --allow-mount DIR",
  });
}
