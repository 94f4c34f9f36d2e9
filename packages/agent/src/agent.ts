import { join } from 'node:path';
import { counted, DroverError, lockDirectory, makeDirectories, parseSandboxId, type Logger } from '@drover/foundation';
import { bootId } from '@drover/linux';
import { namesOf } from '@drover/pki';
import { checkBackends, defaultStandbys, openBackends } from './backends/index.ts';
import { checkDisk } from './disks/index.ts';
import type { Finding } from './finding.ts';
import { ForeignPaths } from './foreign/index.ts';
import { LinuxHost } from './host.ts';
import { ImageStore, type RegistryConfig } from './images/index.ts';
import { controlPort, proxyPort, standbyMemoryBytes } from './limits.ts';
import { AgentLink, CredentialsStore, forgetIdentity, loadIdentity, type HostIdentity } from './link/index.ts';
import { checkGateway, ControlListener, defaultPool, gatewayAddressOf, HostGateway, instanceTag, SandboxNetwork } from './network/index.ts';
import { SandboxManager } from './sandboxes/index.ts';
import { collectImages } from './upkeep.ts';
import { VolumeStore } from './volumes/index.ts';

export interface AgentOptions {
  /** Holds the host's identity, records, images and sandboxes. One agent at a time. */
  readonly stateDirectory: string;
  readonly logger: Logger;
  /** The agent's lifetime; aborted, it stops cleanly and sandboxes run on. */
  readonly signal: AbortSignal;
  /** Default: the machine's host name. */
  readonly name?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly zone?: string;
  /** CPUs that it offers to sandboxes, in thousandths; more than the machine has overcommits them. Default: all of the machine. */
  readonly cpuMillis?: number;
  /** Sandboxes at most; default 200. */
  readonly slots?: number;
  /** host:port of the link; default: from the join. */
  readonly linkAddress?: string;
  /** The longest wait between two tries to reach the control plane (L-12); default 30 s. Milliseconds. */
  readonly reconnectMaxMs?: number;
  /** Addresses for sandboxes, an IPv4 network; default 10.213.0.0/16. */
  readonly pool?: string;
  /** `runc` (default), `crun`, or a path. */
  readonly runtimeProgram?: string;
  readonly registries?: RegistryConfig;
  /** Directories of the host that sandboxes may mount. */
  readonly allowedMounts?: readonly string[];
  /** Standbys at most: the host sets memory aside for them. Default: by its memory, 0 to 16. */
  readonly standbys?: number;
  /** Starts `drover gateway`; its arguments are appended. Default: this program with `gateway`. */
  readonly gatewayCommand?: readonly [string, ...string[]];
}

/**
 * Runs the host agent until the signal aborts or the host is removed from its control plane.
 * @throws {DroverError} host-removed; failed-precondition when the host has not joined, or another agent runs on the directory;
 *   missing-component and missing-privilege when the host cannot run sandboxes
 */
export async function runAgent(options: AgentOptions): Promise<void> {
  const { stateDirectory, logger } = options;
  // Other users pass through: it holds the sandboxes' roots, whose owners are not root.
  await makeDirectories(stateDirectory, 0o711);
  const identity = await loadIdentity(stateDirectory);
  if (identity === undefined) {
    throw new DroverError('failed-precondition', `this host has not joined a control plane (nothing in ${stateDirectory})`, {
      hint: 'run what `drover host token` prints: drover agent join URL --token TOKEN',
    });
  }
  using _lock = lockDirectory(stateDirectory, 'host agent');
  // Aborted also when the agent fails.
  const life = new AbortController();
  const signal = AbortSignal.any([options.signal, life.signal]);
  const { images, backends, sandboxes, gateway, control, link } = assemble(options, identity, signal);
  refuseProblems((await Promise.all(backends.map(async (backend) => await backend.check()))).flat(), logger);
  try {
    await images.start();
    // Makes the address that the control listener listens on.
    await sandboxes.open();
    await control.listen();
    // The first sandbox of this image need not wait for it then.
    images.ensure('host', { signal }).catch((error: unknown) => logger.warn({ err: error }, 'the image host is not ready'));
    void collectImages({ images, directory: stateDirectory, logger, signal });
    if ((await link.run(signal)) === 'removed') await leave(sandboxes, stateDirectory, logger);
  } finally {
    life.abort();
    await control.close();
    await sandboxes.close();
    // Sandboxes that run on keep their egress.
    await gateway.close({ leaveRunning: sandboxes.list().some((sandbox) => sandbox.address !== '') });
    await images.stopped();
  }
}

/** Puts the agent's parts together; nothing is started. Parts that need each other do so from within callbacks. */
function assemble(options: AgentOptions, identity: HostIdentity, signal: AbortSignal) {
  const { stateDirectory, logger, standbys = defaultStandbys() } = options;
  const { network, gateway, control } = assembleNetwork(options, identity, () => link);
  const foreign = new ForeignPaths();
  const volumes = new VolumeStore(join(stateDirectory, 'volumes'));
  const images = new ImageStore({
    directory: join(stateDirectory, 'images'),
    foreign,
    logger,
    signal,
    ...(options.registries !== undefined && { config: options.registries }),
  });
  const cgroupParent = `/drover-${instanceTag(identity.hostId)}`;
  const backends = openBackends({ ...options, cgroupParent, images, network, foreign, standbys });
  const sandboxes = new SandboxManager({
    stateDirectory,
    backends,
    volumes,
    names: namesOf(identity.trustDomain),
    sign: async (...request) => await link.signSandboxCertificate(...request),
    report: (event) => link.report(event),
    allowedMounts: options.allowedMounts ?? [],
    bootId: bootId(),
    logger,
    signal,
  });
  const info = new LinuxHost({
    ...options,
    reservedMemoryBytes: standbys * standbyMemoryBytes,
    backends,
    check: async () => await checkHost(options),
  });
  const credentials = new CredentialsStore(stateDirectory, identity);
  const { linkAddress: address, reconnectMaxMs } = options;
  const link = new AgentLink({
    credentials,
    sandboxes,
    images,
    volumes,
    info,
    logger,
    ...(address !== undefined && { address }),
    ...(reconnectMaxMs !== undefined && { reconnectMaxMs }),
  });
  return { images, backends, sandboxes, gateway, control, link };
}

function assembleNetwork(options: AgentOptions, identity: HostIdentity, link: () => AgentLink) {
  const { stateDirectory, logger, pool = defaultPool } = options;
  const gatewayAddress = gatewayAddressOf(pool);
  const gateway = new HostGateway({
    stateDirectory,
    command: options.gatewayCommand ?? ownGatewayCommand(),
    address: gatewayAddress,
    port: proxyPort,
    onRefusal: ({ sandboxId, host: destination, port, method, rule, count, atMs }) =>
      link().report({
        id: parseSandboxId(sandboxId),
        at: Number(atMs),
        event: { case: 'egressDenied', value: { host: destination, port, method, rule, count } },
      }),
    logger,
  });
  const network: SandboxNetwork = new SandboxNetwork({
    stateDirectory,
    instance: instanceTag(identity.hostId),
    proxyPort,
    controlPort,
    logger,
    pool,
    applyGateway: async (policies) => await gateway.apply(policies),
    onRelease: (id) => control.released(id),
  });
  const control = new ControlListener({
    host: gatewayAddress,
    port: controlPort,
    holderOf: (address) => network.holderOf(address),
    carry: ({ id, interface: name }, peerAddress, connection) =>
      link().carryInbound({ sandboxId: id, interface: name, peerAddress }, connection),
    logger,
  });
  return { network, gateway, control };
}

/**
 * L-4: the control plane never accepts a removed host's id again. Its sandboxes cannot be reached any more, so they are destroyed (L-26), and a
 * later join makes it a new host.
 * @throws {DroverError} host-removed, always
 */
async function leave(sandboxes: SandboxManager, stateDirectory: string, logger: Logger): Promise<never> {
  const left = sandboxes.list();
  for (const { sandboxId } of left) {
    await sandboxes.destroy(parseSandboxId(sandboxId)).catch((error: unknown) => {
      logger.error({ err: error, sandbox: sandboxId }, 'a sandbox of a removed host could not be destroyed');
    });
  }
  await forgetIdentity(stateDirectory);
  const lost = left.length === 0 ? '' : `; its ${counted(left.length, 'sandbox')} ${left.length === 1 ? 'is' : 'are'} lost`;
  throw new DroverError('host-removed', `this host was removed from its control plane${lost}`, {
    hint: 'to add it again as a new host, run what `drover host token` prints',
  });
}

/** Checks what this host can do, for `drover doctor`. @throws {DroverError} invalid-config */
export async function agentDoctor(
  options: Pick<AgentOptions, 'stateDirectory' | 'logger' | 'pool' | 'runtimeProgram'>,
): Promise<readonly Finding[]> {
  const findings = await checkBackends(options);
  // Only root may query the host's own gateway.
  if (process.getuid?.() !== 0) return findings;
  return [...findings, ...(await checkHost(options))];
}

/** Logs the warnings. @throws {DroverError} missing-privilege, missing-component, when there is a problem */
export function refuseProblems(findings: readonly Finding[], logger: Logger): void {
  for (const finding of findings)
    if (finding.level === 'warning') logger.warn({ subject: finding.subject, hint: finding.hint }, finding.message);
  const problems = findings.filter((finding) => finding.level === 'problem');
  const [first] = problems;
  if (first === undefined) return;
  throw new DroverError(
    first.subject === 'privilege' ? 'missing-privilege' : 'missing-component',
    problems.map((p) => p.message).join('; '),
    {
      hint: problems.map((p) => p.hint).join('; '),
    },
  );
}

async function checkHost({ stateDirectory, pool }: Pick<AgentOptions, 'stateDirectory' | 'pool'>): Promise<readonly Finding[]> {
  return await Promise.all([checkGateway(stateDirectory, pool), checkDisk(stateDirectory)]);
}

function ownGatewayCommand(): readonly [string, ...string[]] {
  return [process.execPath, ...process.execArgv, '--', process.argv[1] ?? '', 'gateway'];
}
