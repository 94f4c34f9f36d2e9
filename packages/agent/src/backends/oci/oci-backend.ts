import { existsSync } from 'node:fs';
import { mkdir, rm, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { DroverError, KeyedExecutor, newSandboxId, type SandboxId } from '@drover/foundation';
import { initPort, standbyFile } from '@drover/init';
import { isMounted, signalProcess } from '@drover/linux';
import type { Policy } from '@drover/spec/policy';
import { fullnessOf, isDiskRoot } from '../../disks/index.ts';
import type { Finding } from '../../finding.ts';
import type { ImageHandle, Images } from '../../images/index.ts';
import { initPidsAllowance, standbyPollMs, standbyReadyMs } from '../../limits.ts';
import type { Network, NetworkAttachment } from '../../network/index.ts';
import type { Exhausted, SandboxState, SandboxUsage, StartRequest, StoppedRoot } from '../backend.ts';
import { startCompleting } from '../completion.ts';
import type { PrestartingBackend } from '../standbys.ts';
import { checkHost } from './check.ts';
import type { ContainerRequest, StartGate } from './container.ts';
import { emptyRecord, readRecord, writeRecord } from './container-record.ts';
import { livePid, mustRun, notFound, peek, settle } from './container-state.ts';
import { dialSandbox } from './dial.ts';
import { KernelLog } from './kernel-log.ts';
import { Launcher } from './launch.ts';
import { OciHost, type OciHostOptions } from './oci-host.ts';
import { destroyContainer, endCgroups, endProgram, hasRemains, unknownContainers } from './removal.ts';
import { StandbyContainers } from './standby.ts';
import { rangeStart } from './uid-ranges.ts';

export interface OciBackendOptions extends OciHostOptions {
  /** Standbys have their run directories in `run/`, beside those of the sandboxes. Default: the state directory. */
  readonly runsIn?: string;
  readonly images: Pick<Images, 'ensure' | 'hold' | 'release' | 'retain'>;
  readonly network: Network;
  /** Makes the directory with Node and init that is mounted at /.drover (I-38), and returns its path. */
  readonly prepareInit: () => Promise<string>;
}

/**
 * Containers of an OCI runtime program, without a daemon, over images of the host's store and namespaces of the host's network. The record
 * on disk states what a container is; the kernel states whether it lives.
 */
export class OciBackend implements PrestartingBackend {
  readonly name = 'oci';
  readonly #options: OciBackendOptions;
  readonly #host: OciHost;
  readonly #launcher: Launcher;
  readonly #standbys: StandbyContainers;
  readonly #kernelLog = new KernelLog();
  /** One operation at a time on one sandbox. */
  readonly #operations = new KeyedExecutor<SandboxId>();
  readonly #standbyNetworks = new Map<SandboxId, NetworkAttachment>();
  #initDirectory = '';

  constructor(options: OciBackendOptions) {
    this.#options = options;
    this.#host = new OciHost(options);
    this.#launcher = new Launcher(this.#host);
    this.#standbys = new StandbyContainers(this.#host, this.#launcher);
  }

  async check(): Promise<readonly Finding[]> {
    return await checkHost(this.#host);
  }

  async open(known: ReadonlySet<SandboxId>): Promise<void> {
    await this.#options.network.start(known);
    this.#initDirectory = await this.#options.prepareInit();
  }

  async sweep(known: ReadonlySet<SandboxId>): Promise<readonly SandboxId[]> {
    const { images, network } = this.#options;
    const unknown = await unknownContainers(this.#host, known);
    for (const id of unknown) {
      await this.#operations.run(id, async () => await this.#standbys.destroy(id));
      await network.release(id);
    }
    await images.retain(known);
    return unknown;
  }

  async close(): Promise<void> {
    this.#launcher.close();
    await this.#options.network.close();
    await this.#kernelLog.close();
    await this.#host.close();
  }

  async create(request: StartRequest, signal: AbortSignal, standby?: SandboxId): Promise<void> {
    const { id } = request;
    try {
      await this.#operations.run(id, async () => {
        signal.throwIfAborted();
        if ((await settle(this.#host, id)) !== undefined) return;
        // A crash interrupted an earlier create.
        if (await hasRemains(this.#host, id)) await destroyContainer(this.#host, id);
        await this.#start(request, standby, signal).catch(async (error: unknown) => {
          await this.#cleanUp(id, async () => await this.#destroy(id));
          throw error;
        });
      });
    } finally {
      if (standby !== undefined) await this.discard(standby);
    }
  }

  async start(request: StartRequest, signal: AbortSignal): Promise<void> {
    const { id } = request;
    await this.#operations.run(id, async () => {
      const state = await settle(this.#host, id);
      if (state === undefined) throw notFound(id);
      if (state.phase !== 'ended') return;
      await this.#start(request, undefined, signal).catch(async (error: unknown) => {
        await this.#cleanUp(id, async () => await this.#release(id));
        throw error;
      });
    });
  }

  async kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const { cgroups, exits } = this.#host;
    const record = await this.#host.recordOf(id);
    const pid = record === undefined ? undefined : livePid(this.#host, id, record);
    if (pid === undefined) return;
    signalProcess(pid, signal);
    if (signal === 'SIGTERM') return;
    await cgroups.thaw(record?.container ?? id);
    exits.hurry(id);
  }

  async pause(id: SandboxId): Promise<void> {
    const { cgroups, program } = this.#host;
    await this.#operations.run(id, async () => {
      const { container = id } = await mustRun(this.#host, id);
      if (!cgroups.isFrozen(container)) await program.pause(container);
    });
  }

  async resume(id: SandboxId): Promise<void> {
    const { cgroups, program } = this.#host;
    await this.#operations.run(id, async () => {
      const { container = id } = await mustRun(this.#host, id);
      if (cgroups.isFrozen(container)) await program.resume(container);
    });
  }

  async release(id: SandboxId): Promise<void> {
    await this.#operations.run(id, async () => await this.#release(id));
  }

  async destroy(id: SandboxId): Promise<void> {
    await this.#operations.run(id, async () => await this.#destroy(id));
  }

  async inspect(id: SandboxId): Promise<SandboxState | undefined> {
    const state = await peek(this.#host, id);
    return state === 'unsettled' ? await this.#operations.run(id, async () => await settle(this.#host, id)) : state;
  }

  async waitExit(id: SandboxId, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const record = await this.#host.recordOf(id);
    if (record === undefined) return;
    await this.#host.exits.wait(id, record.runDirectory, () => livePid(this.#host, id, record) === undefined, signal);
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    const record = await mustRun(this.#host, id);
    return await dialSandbox({
      address: record.address,
      port: port === 'init' ? initPort : port,
      runDirectory: port === 'init' ? record.runDirectory : undefined,
      hasEnded: () => livePid(this.#host, id, record) === undefined,
      clock: this.#host.clock,
      signal,
    });
  }

  async stats(id: SandboxId): Promise<SandboxUsage | undefined> {
    return this.#host.cgroups.stats(await this.#containerOf(id));
  }

  async stoppedRoot(id: SandboxId): Promise<StoppedRoot | undefined> {
    const { root } = this.#host.layoutOf(id);
    const record = await this.#host.recordOf(id);
    // It stays mounted until the sandbox is removed, or this machine restarts.
    if (record?.phase !== 'ended' || !isMounted(root)) return undefined;
    return { path: root, firstId: record.slot === undefined ? 0 : rangeStart(record.slot) };
  }

  async exhausted(id: SandboxId): Promise<readonly Exhausted[]> {
    const { cgroups, stateDirectory } = this.#host;
    const { writable } = this.#host.layoutOf(id);
    const pids = cgroups.pidsLimitReached(await this.#containerOf(id));
    const found: Exhausted[] = pids === undefined ? [] : [{ resource: 'pids', limit: Math.max(1, pids - initPidsAllowance) }];
    const hasLimit = await isDiskRoot(writable);
    const disk = await statfs(hasLimit ? writable : stateDirectory);
    const resource = fullnessOf(disk);
    if (resource === undefined) return found;
    if (!hasLimit) return [...found, { resource: 'host-disk', limit: 0 }];
    return [...found, { resource, limit: resource === 'disk' ? disk.blocks * disk.bsize : disk.files }];
  }

  async oomKills(id: SandboxId): Promise<number> {
    return this.#host.cgroups.oomKills(await this.#containerOf(id));
  }

  async oomVictims(id: SandboxId, count: number): Promise<readonly string[]> {
    return (await this.#kernelLog.victims(await this.#containerOf(id))).slice(-count);
  }

  async applyPolicy(id: SandboxId, policy: Policy): Promise<void> {
    await this.#options.network.applyPolicy(id, policy);
  }

  async setCut(id: SandboxId, cut: boolean): Promise<void> {
    await this.#options.network.setCut(id, cut);
  }

  async setRegistrationClosed(id: SandboxId, closed: boolean): Promise<void> {
    await this.#options.network.setRegistrationClosed(id, closed);
  }

  async prestart(signal: AbortSignal): Promise<SandboxId | undefined> {
    const { clock } = this.#host;
    const network = await this.#options.network.reserve();
    if (network === undefined) return undefined;
    const id = newSandboxId();
    const runDirectory = this.#standbyRunDirectory(id);
    this.#standbyNetworks.set(id, network);
    try {
      await mkdir(runDirectory, { recursive: true, mode: 0o700 });
      await this.#standbys.make({ id, network, initDirectory: this.#initDirectory, runDirectory }, signal);
      // An init that is still being loaded would lose its files with its root.
      const deadline = clock.now() + standbyReadyMs;
      while (!existsSync(join(runDirectory, standbyFile))) {
        if (clock.now() >= deadline) throw new DroverError('timed-out', `a standby was not ready after ${standbyReadyMs} ms`);
        await clock.sleep(standbyPollMs, signal);
      }
      return id;
    } catch (error) {
      await this.#cleanUp(id, async () => await this.discard(id));
      throw error;
    }
  }

  async discard(standby: SandboxId): Promise<void> {
    const network = this.#standbyNetworks.get(standby);
    if (network === undefined) return;
    await this.#standbys.destroy(standby);
    await this.#options.network.unreserve(network);
    await this.#forgetStandby(standby);
  }

  async #forgetStandby(standby: SandboxId): Promise<void> {
    this.#standbyNetworks.delete(standby);
    await rm(this.#standbyRunDirectory(standby), { recursive: true, force: true });
  }

  async #start(request: StartRequest, standby: SandboxId | undefined, signal: AbortSignal): Promise<void> {
    const { id, hostname, limits, mounts, secretsBytes, runDirectory, opening } = request;
    const reserved = standby === undefined ? undefined : this.#standbyNetworks.get(standby);
    const network = await this.#options.network.acquire(id, reserved);
    const { digest, config, ...image } = await this.#holdImage(request, signal);
    const container: ContainerRequest = {
      id,
      hostname,
      limits,
      mounts,
      runDirectory,
      network,
      ...image,
      initDirectory: this.#initDirectory,
      ...(secretsBytes !== undefined && { secretsBytes }),
    };
    // The sandbox may have had a network already, and a standby cannot leave its own.
    const usable = reserved?.namespacePath === network.namespacePath ? standby : undefined;
    const prepared = { imageDigest: digest, imageConfig: config, addresses: network };
    await startCompleting(
      request,
      prepared,
      signal,
      async (completed) => await this.#launch(container, usable, { completed, opening }, signal),
    );
  }

  async #holdImage({ id, image, onProgress }: StartRequest, signal: AbortSignal): Promise<ImageHandle> {
    const { images } = this.#options;
    const handle = await images.ensure(image, { signal, ...(onProgress !== undefined && { onProgress }) });
    await images.hold(handle.digest, id);
    return handle;
  }

  async #launch(request: ContainerRequest, standby: SandboxId | undefined, gate: StartGate, signal: AbortSignal): Promise<void> {
    const host = this.#host;
    const layout = host.layoutOf(request.id);
    const earlier = await readRecord(layout.record);
    if (earlier !== undefined) {
      const { slot, phase, container = request.id } = earlier;
      if (phase === 'starting') await endProgram(host, layout);
      // Of the earlier run; its processes have ended.
      await endCgroups(host, container);
      await host.program.forget(container);
      signal.throwIfAborted();
      const { container: _, ...record } = earlier;
      await writeRecord(layout.record, { ...record, phase: 'starting' });
      const again = async () => await this.#launcher.run(request, slot, await host.ownersOf(slot));
      await this.#launcher.launch(request, gate, again, signal);
      return;
    }
    const first = async () => {
      const waiting = standby === undefined ? undefined : await this.#standbys.become(standby, request);
      if (standby !== undefined) await this.#forgetStandby(standby);
      if (waiting !== undefined) return waiting;
      const { slot, owners } = await host.allocate(layout, emptyRecord(request, undefined));
      signal.throwIfAborted();
      return await this.#launcher.run(request, slot, owners);
    };
    await this.#launcher.launch(request, gate, first, signal);
  }

  async #release(id: SandboxId): Promise<void> {
    await this.kill(id, 'SIGKILL');
    await this.#options.network.release(id);
  }

  async #destroy(id: SandboxId): Promise<void> {
    await destroyContainer(this.#host, id);
    await this.#options.network.release(id);
    await this.#options.images.release(id);
  }

  async #cleanUp(id: SandboxId, act: () => Promise<void>): Promise<void> {
    await act().catch((error: unknown) => {
      this.#host.logger.error({ err: error, sandbox: id }, 'cleaning up after a failed start; the next sweep tries again');
    });
  }

  async #containerOf(id: SandboxId): Promise<SandboxId> {
    return (await this.#host.recordOf(id))?.container ?? id;
  }

  #standbyRunDirectory(id: SandboxId): string {
    return join(this.#options.runsIn ?? this.#options.stateDirectory, 'run', id);
  }
}
