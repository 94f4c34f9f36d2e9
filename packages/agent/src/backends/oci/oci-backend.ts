import { existsSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { DroverError, KeyedExecutor, newSandboxId, systemClock, type Clock, type Logger, type SandboxId } from '@drover/foundation';
import { standbyFile } from '@drover/init';
import type { Policy } from '@drover/spec/policy';
import type { Finding } from '../../finding.ts';
import type { ImageHandle, Images } from '../../images/index.ts';
import { standbyPollMs, standbyReadyMs } from '../../limits.ts';
import type { Network, NetworkAttachment } from '../../network/index.ts';
import type { OciRuntime } from '../../runtimes/index.ts';
import type { Exhausted, SandboxState, SandboxUsage, StartRequest, StoppedRoot } from '../backend.ts';
import { startCompleting } from '../completion.ts';
import type { PrestartingBackend } from '../standbys.ts';

export interface OciBackendOptions {
  /** Standbys have their run directories in `run/`, beside those of the sandboxes. */
  readonly stateDirectory: string;
  readonly runtime: OciRuntime;
  readonly images: Pick<Images, 'ensure' | 'hold' | 'release' | 'retain'>;
  readonly network: Network;
  /** Makes the directory with Node and init that is mounted at /.drover (I-38), and returns its path. */
  readonly prepareInit: () => Promise<string>;
  readonly logger: Logger;
  readonly clock?: Clock;
}

/** Containers of an OCI runtime program, over images of the host's store and namespaces of the host's network. */
export class OciBackend implements PrestartingBackend {
  readonly name = 'oci';
  readonly #options: OciBackendOptions;
  readonly #runtime: OciRuntime;
  readonly #network: Network;
  readonly #clock: Clock;
  readonly #operations = new KeyedExecutor<SandboxId>();
  /** Networks of standbys. */
  readonly #standbys = new Map<SandboxId, NetworkAttachment>();
  #initDirectory = '';

  constructor(options: OciBackendOptions) {
    this.#options = options;
    this.#runtime = options.runtime;
    this.#network = options.network;
    this.#clock = options.clock ?? systemClock;
  }

  async check(): Promise<readonly Finding[]> {
    return await this.#runtime.check();
  }

  async open(known: ReadonlySet<SandboxId>): Promise<void> {
    await this.#network.start(known);
    this.#initDirectory = await this.#options.prepareInit();
  }

  async sweep(known: ReadonlySet<SandboxId>): Promise<readonly string[]> {
    const swept = await this.#runtime.sweep(known);
    for (const id of swept) await this.#network.release(id);
    await this.#options.images.retain(known);
    return swept;
  }

  async close(): Promise<void> {
    await this.#network.close();
    await this.#runtime.close();
  }

  async create(request: StartRequest, signal: AbortSignal, standby?: SandboxId): Promise<void> {
    const { id } = request;
    try {
      await this.#operations.run(id, async () => {
        signal.throwIfAborted();
        if ((await this.#runtime.inspect(id)) !== undefined) return;
        try {
          await this.#start('create', request, signal, standby);
        } catch (error) {
          await this.#destroy(id).catch((failure: unknown) => this.#logCleanup(id, failure));
          throw error;
        }
      });
    } finally {
      if (standby !== undefined) await this.discard(standby);
    }
  }

  async start(request: StartRequest, signal: AbortSignal): Promise<void> {
    const { id } = request;
    await this.#operations.run(id, async () => {
      const state = await this.#runtime.inspect(id);
      if (state !== undefined && state.phase !== 'ended') return;
      if (state === undefined) throw new DroverError('sandbox-not-found', `there is no sandbox ${id} on this host`);
      try {
        await this.#start('start', request, signal);
      } catch (error) {
        await this.#release(id).catch((failure: unknown) => this.#logCleanup(id, failure));
        throw error;
      }
    });
  }

  async kill(id: SandboxId, signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await this.#runtime.kill(id, signal);
  }

  async pause(id: SandboxId): Promise<void> {
    await this.#runtime.pause(id);
  }

  async resume(id: SandboxId): Promise<void> {
    await this.#runtime.resume(id);
  }

  async release(id: SandboxId): Promise<void> {
    await this.#operations.run(id, async () => await this.#release(id));
  }

  async destroy(id: SandboxId): Promise<void> {
    await this.#operations.run(id, async () => await this.#destroy(id));
  }

  async inspect(id: SandboxId): Promise<SandboxState | undefined> {
    return await this.#runtime.inspect(id);
  }

  async waitExit(id: SandboxId, signal: AbortSignal): Promise<void> {
    await this.#runtime.waitExit(id, signal);
  }

  async dial(id: SandboxId, port: 'init' | number, signal: AbortSignal): Promise<Duplex> {
    return await this.#runtime.dial(id, port, signal);
  }

  async stats(id: SandboxId): Promise<SandboxUsage | undefined> {
    return await this.#runtime.stats(id);
  }

  async stoppedRoot(id: SandboxId): Promise<StoppedRoot | undefined> {
    return await this.#runtime.stoppedRoot(id);
  }

  async exhausted(id: SandboxId): Promise<readonly Exhausted[]> {
    return await this.#runtime.exhausted(id);
  }

  async oomKills(id: SandboxId): Promise<number> {
    return await this.#runtime.oomKills(id);
  }

  async oomVictims(id: SandboxId, count: number): Promise<readonly string[]> {
    return await this.#runtime.oomVictims(id, count);
  }

  async applyPolicy(id: SandboxId, policy: Policy): Promise<void> {
    await this.#network.applyPolicy(id, policy);
  }

  async setCut(id: SandboxId, cut: boolean): Promise<void> {
    await this.#network.setCut(id, cut);
  }

  async setRegistrationClosed(id: SandboxId, closed: boolean): Promise<void> {
    await this.#network.setRegistrationClosed(id, closed);
  }

  async prestart(signal: AbortSignal): Promise<SandboxId | undefined> {
    const { standBy } = this.#runtime;
    const network = standBy === undefined ? undefined : await this.#network.reserve();
    if (standBy === undefined || network === undefined) return undefined;
    const id = newSandboxId();
    this.#standbys.set(id, network);
    const runDirectory = this.#runDirectory(id);
    try {
      await mkdir(runDirectory, { recursive: true, mode: 0o700 });
      await standBy({ id, network, initDirectory: this.#initDirectory, runDirectory }, signal);
      const deadline = this.#clock.now() + standbyReadyMs;
      while (!existsSync(join(runDirectory, standbyFile))) {
        if (this.#clock.now() >= deadline) throw new DroverError('timed-out', `a standby was not ready after ${standbyReadyMs} ms`);
        await this.#clock.sleep(standbyPollMs, signal);
      }
      return id;
    } catch (error) {
      await this.discard(id).catch((failure: unknown) => this.#logCleanup(id, failure));
      throw error;
    }
  }

  async discard(standby: SandboxId): Promise<void> {
    const network = this.#standbys.get(standby);
    if (network === undefined) return;
    await this.#runtime.destroy(standby);
    await this.#network.unreserve(network);
    await this.#forgetStandby(standby);
  }

  async #forgetStandby(standby: SandboxId): Promise<void> {
    this.#standbys.delete(standby);
    await rm(this.#runDirectory(standby), { recursive: true, force: true });
  }

  async #start(operation: 'create' | 'start', request: StartRequest, signal: AbortSignal, standby?: SandboxId): Promise<void> {
    const { id, complete: _complete, onProgress: _progress, image: _reference, opening, ...rest } = request;
    const reserved = standby === undefined ? undefined : this.#standbys.get(standby);
    const network = await this.#network.acquire(id, reserved);
    const image = await this.#holdImage(request, signal);
    // The sandbox may have had a network already, and a standby cannot leave its own.
    const usable = reserved?.namespacePath === network.namespacePath ? standby : undefined;
    const { digest, config, ...layers } = image;
    const prepared = { imageDigest: digest, imageConfig: config, addresses: network };
    await startCompleting(request, prepared, signal, async (completed) => {
      const gate = { completed, opening };
      const container = { ...rest, ...layers, id, network, initDirectory: this.#initDirectory, gate };
      if (usable === undefined) return await this.#runtime[operation](container, signal);
      // The runtime uses the standby or removes it.
      await this.#forgetStandby(usable);
      await this.#runtime[operation]({ ...container, standby: usable }, signal);
    });
  }

  async #holdImage({ id, image, onProgress }: StartRequest, signal: AbortSignal): Promise<ImageHandle> {
    const { images } = this.#options;
    const handle = await images.ensure(image, { signal, ...(onProgress !== undefined && { onProgress }) });
    await images.hold(handle.digest, id);
    return handle;
  }

  async #release(id: SandboxId): Promise<void> {
    await this.#runtime.kill(id, 'SIGKILL');
    await this.#network.release(id);
  }

  async #destroy(id: SandboxId): Promise<void> {
    await this.#runtime.destroy(id);
    await this.#network.release(id);
    await this.#options.images.release(id);
  }

  #logCleanup(id: SandboxId, error: unknown): void {
    this.#options.logger.error({ err: error, sandbox: id }, 'cleaning up after a failed start; the next sweep tries again');
  }

  #runDirectory(id: SandboxId): string {
    return join(this.#options.stateDirectory, 'run', id);
  }
}
