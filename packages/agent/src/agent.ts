import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { counted, DroverError, lockDirectory, makeDirectories, type Logger } from '@drover/foundation';
import { initBundlePath, ptyAddonPath } from '@drover/init';
import { bootId } from '@drover/linux';
import { namesOf } from '@drover/pki';
import { link as linkApi } from '@drover/protocol';
import { checkDisk } from './disks/index.ts';
import { ForeignPaths } from './foreign/index.ts';
import { LinuxHost } from './host.ts';
import { ImageStore, type RegistryConfig } from './images/index.ts';
import { controlPort, proxyPort, standbyMemoryBytes } from './limits.ts';
import { AgentLink, CredentialsStore, forgetIdentity, loadIdentity } from './link/index.ts';
import { checkGateway, ControlListener, GatewayProcess, instanceTag, proxyEnvironment, SandboxNetwork } from './network/index.ts';
import { OciRuntime, prepareInitDirectory, type RuntimeFinding } from './runtimes/index.ts';
import { defaultStandbys, SandboxManager } from './sandboxes/index.ts';
import { keepImagesTidy } from './upkeep.ts';
import { VolumeStore } from './volumes/index.ts';

export interface AgentOptions {
  /** Everything that the host keeps: identity, records, images, sandboxes. One agent at a time. */
  readonly stateDirectory: string;
  readonly logger: Logger;
  /** The agent's lifetime; aborted, it stops cleanly and sandboxes run on. */
  readonly signal: AbortSignal;
  /** Default: the machine's host name. */
  readonly name?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly zone?: string;
  /** CPUs that it offers to sandboxes, in thousandths: more than there are overcommits them. Default: all there are. */
  readonly cpuMillis?: number;
  /** Sandboxes at most; default 200. */
  readonly slots?: number;
  /** host:port of the link; default: as the join said. */
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
  /** Sandboxes that are kept ready ahead of creates; default: by the memory of the host, 0 to 16. */
  readonly standbys?: number;
  /** Starts `drover gateway`, its arguments to follow. Default: this program again, with `gateway`. */
  readonly gatewayCommand?: readonly [string, ...string[]];
}

/**
 * Runs the host agent until the signal aborts or the host is removed from its control plane.
 * @throws {DroverError} host-removed; failed-precondition when the host has not joined, or another agent runs on the directory;
 *   missing-component and missing-privilege when the host cannot run sandboxes
 */
export async function runAgent(options: AgentOptions): Promise<void> {
  const { stateDirectory, logger } = options;
  // Others may pass through: sandboxes' roots are in here, and their owners are not root.
  await makeDirectories(stateDirectory, 0o711);
  const identity = await loadIdentity(stateDirectory);
  if (identity === undefined) {
    throw new DroverError('failed-precondition', `this host has not joined a control plane (nothing in ${stateDirectory})`, {
      hint: 'run what `drover host token` prints: drover agent join URL --token TOKEN',
    });
  }
  using _lock = lockDirectory(stateDirectory, 'host agent');
  // Ends what lives under the agent also when it ends by itself.
  const life = new AbortController();
  const signal = AbortSignal.any([options.signal, life.signal]);

  const instance = instanceTag(identity.hostId);
  const foreign = new ForeignPaths();
  const runtime = new OciRuntime({
    stateDirectory,
    foreign,
    cgroupParent: `/drover-${instance}`,
    logger,
    ...(options.runtimeProgram !== undefined && { program: options.runtimeProgram }),
  });
  refuseProblems(await runtime.check(), logger);

  const images = new ImageStore({
    directory: join(stateDirectory, 'images'),
    foreign,
    logger,
    signal,
    ...(options.registries !== undefined && { config: options.registries }),
  });
  // The link signs certificates for the sandboxes, and the sandboxes carry out the link's commands.
  let link: AgentLink | undefined;
  const volumes = new VolumeStore(join(stateDirectory, 'volumes'));
  // The gateway listens on an address that the network makes; the network applies its policies to the gateway.
  let gateway: GatewayProcess | undefined;
  let control: ControlListener | undefined;
  const network = new SandboxNetwork({
    stateDirectory,
    instance,
    proxyPort,
    controlPort,
    logger,
    applyGateway: async (policies) => await gateway?.apply(policies),
    onRelease: (id) => control?.released(id),
    ...(options.pool !== undefined && { pool: options.pool }),
  });
  gateway = new GatewayProcess({
    stateDirectory,
    command: options.gatewayCommand ?? ownGatewayCommand(),
    address: network.gatewayAddress,
    port: proxyPort,
    onRefusal: ({ sandboxId, host: destination, port, method, rule, count, atMs }) =>
      link?.report({
        sandboxId,
        at: timestampFromMs(Number(atMs)),
        event: { case: 'egressDenied', value: { host: destination, port, method, rule, count } },
      }),
    logger,
  });

  const standbys = options.standbys ?? defaultStandbys();
  const host = new LinuxHost({
    stateDirectory,
    reservedMemoryBytes: standbys * standbyMemoryBytes,
    labels: options.labels ?? {},
    zone: options.zone ?? '',
    runtimes: [runtime],
    checks: [async () => await checkGateway(stateDirectory, options.pool), async () => await checkDisk(stateDirectory)],
    ...(options.name !== undefined && { name: options.name }),
    ...(options.cpuMillis !== undefined && { cpuMillis: options.cpuMillis }),
    ...(options.slots !== undefined && { slots: options.slots }),
  });
  const sandboxes = new SandboxManager({
    report: (event) => link?.report(event),
    stateDirectory,
    runtimes: [runtime],
    images,
    volumes,
    network,
    initDirectory: await prepareInitDirectory(join(stateDirectory, 'init'), {
      nodePath: process.execPath,
      bundlePath: initBundlePath(),
      addonPath: ptyAddonPath(),
    }),
    names: namesOf(identity.trustDomain),
    sign: async (id, csrDer, signSignal) => {
      if (link === undefined) throw new DroverError('unavailable', 'the agent has no link yet');
      return await link.signSandboxCertificate(id, csrDer, signSignal);
    },
    gatewayEnvironment: (attachment, name) =>
      Object.entries(proxyEnvironment(attachment, name)).map(([variable, value]) => `${variable}=${value}`),
    allowedMounts: options.allowedMounts ?? [],
    standbys,
    bootId: bootId(),
    logger,
    signal,
  });
  link = new AgentLink({
    credentials: new CredentialsStore(stateDirectory, identity),
    sandboxes,
    images,
    volumes,
    info: host,
    logger,
    ...(options.linkAddress !== undefined && { address: options.linkAddress }),
    ...(options.reconnectMaxMs !== undefined && { reconnectMaxMs: options.reconnectMaxMs }),
  });
  const { carryInbound } = link;
  control = new ControlListener({
    host: network.gatewayAddress,
    port: controlPort,
    holderOf: (address) => network.holderOf(address),
    carry: ({ id, interface: name }, peerAddress, connection) => carryInbound({ sandboxId: id, interface: name, peerAddress }, connection),
    logger,
  });

  try {
    await images.start();
    // Makes the address that the control listener listens on.
    await sandboxes.start();
    await control.listen();
    // The first sandbox of this image need not wait for it then.
    images.ensure('host', { signal }).catch((error: unknown) => logger.warn({ err: error }, 'the image host is not ready'));
    void keepImagesTidy({ images, directory: stateDirectory, logger, signal });
    if ((await link.run(signal)) === 'removed') await leave(sandboxes, stateDirectory, logger);
  } finally {
    life.abort();
    await control.close();
    await sandboxes.close();
    // Sandboxes that run on keep their way out.
    const needed = sandboxes.list().some((sandbox) => sandbox.address !== '');
    await gateway.close({ leaveRunning: needed });
    await images.stopped();
    await runtime.close();
  }
}

/**
 * L-4: a host that was removed is nobody's. Its sandboxes are lost to their control plane for good, so they end here (L-26), and a
 * later join makes it a new host: the old id is refused for ever.
 * @throws {DroverError} host-removed, always
 */
async function leave(sandboxes: SandboxManager, stateDirectory: string, logger: Logger): Promise<never> {
  const left = sandboxes.list();
  for (const { sandboxId } of left) {
    await sandboxes.destroy(create(linkApi.DestroySandboxSchema, { sandbox: { sandboxId } })).catch((error: unknown) => {
      logger.error({ err: error, sandbox: sandboxId }, 'a sandbox of a removed host could not be taken away');
    });
  }
  await forgetIdentity(stateDirectory);
  const lost = left.length === 0 ? '' : `; its ${counted(left.length, 'sandbox')} ${left.length === 1 ? 'is' : 'are'} lost`;
  throw new DroverError('host-removed', `this host was removed from its control plane${lost}`, {
    hint: 'to add it again as a new host, run what `drover host token` prints',
  });
}

/** What this host can and cannot do, for `drover doctor`. */
export async function agentDoctor(options: {
  readonly stateDirectory: string;
  readonly logger: Logger;
  readonly pool?: string;
  readonly runtimeProgram?: string;
}): Promise<readonly RuntimeFinding[]> {
  const runtime = new OciRuntime({
    stateDirectory: options.stateDirectory,
    cgroupParent: '/drover',
    logger: options.logger,
    ...(options.runtimeProgram !== undefined && { program: options.runtimeProgram }),
  });
  const findings = await runtime.check();
  // Anybody else cannot ask the host's own gateway.
  if (process.getuid?.() !== 0) return findings;
  return [...findings, await checkGateway(options.stateDirectory, options.pool), await checkDisk(options.stateDirectory)];
}

/** Logs the warnings. @throws {DroverError} missing-privilege, missing-component, when there is a problem */
export function refuseProblems(findings: readonly RuntimeFinding[], logger: Logger): void {
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

function ownGatewayCommand(): readonly [string, ...string[]] {
  return [process.execPath, ...process.execArgv, '--', process.argv[1] ?? '', 'gateway'];
}
