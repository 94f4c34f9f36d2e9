import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, hasCode, Notifier, SerialExecutor, systemClock, version as programVersion, type Logger } from '@drover/foundation';
import {
  GatewayClient,
  gatewayIdentityFile,
  relayLogLine,
  type GatewayHealth,
  type GatewayRefusal,
  type SandboxPolicy,
} from '@drover/gateway';
import {
  daemon,
  endProcess,
  isRunning,
  SupervisedProcess,
  type Announcement,
  type Health,
  type ProcessIdentity,
  type ProcessSpec,
  type ProcessStatus,
} from '@drover/supervisor';
import { gatewayAdoptMs, gatewayProbeMs, gatewayRetryMs, gatewayStartMs, gatewayStopGraceMs } from '../limits.ts';

export interface HostGatewayOptions {
  /** The control socket and the identity of the gateway's process are in `<stateDirectory>/gateway`. */
  readonly stateDirectory: string;
  /** The program and its first arguments, before those of `drover gateway`: `[node, cli, 'gateway']`. */
  readonly command: readonly [string, ...string[]];
  /** Where the egress proxy listens. The address must exist when the first policies are applied. */
  readonly address: string;
  readonly port: number;
  /** Called for each report of refused attempts, while the gateway runs. */
  readonly onRefusal?: (refusal: GatewayRefusal) => void;
  readonly logger: Logger;
}

/** The user that the gateway becomes when it was started by root: an id that no account has. */
const gatewayUser = '64213:64213';

/**
 * The gateway of a host, as its agent sees it (G-29). The gateway outlives the agent and serves the sandboxes with the last policies. The
 * next agent attaches to it when version and address agree, so that no connection breaks. Otherwise it ends that gateway and launches
 * its own, which refuses everything until it has the policies.
 */
export class HostGateway {
  readonly #options: HostGatewayOptions;
  readonly #logger: Logger;
  readonly #directory: string;
  readonly #client: GatewayClient;
  readonly #serial = new SerialExecutor();
  readonly #life = new AbortController();
  /** Notified by each change of the gateway's state. */
  readonly #changes = new Notifier();
  #process: SupervisedProcess | undefined;
  /** The desired table; undefined until the first apply. */
  #policies: readonly SandboxPolicy[] | undefined;
  /** The error that the gateway logged since it was last healthy. */
  #startError: { readonly message: string; readonly hint: string | undefined } | undefined;

  constructor(options: HostGatewayOptions) {
    this.#options = options;
    this.#logger = options.logger;
    this.#directory = join(options.stateDirectory, 'gateway');
    this.#client = new GatewayClient(join(this.#directory, 'control.sock'));
  }

  /**
   * Puts a table in force, after attaching to the gateway or launching it where necessary. A table that could not be applied is applied
   * as soon as the gateway is healthy, whatever the caller does. @throws {DroverError} unavailable, invalid-argument
   */
  async apply(policies: readonly SandboxPolicy[]): Promise<void> {
    await this.#serial.run(async () => {
      this.#policies = policies;
      const deadline = AbortSignal.any([this.#life.signal, AbortSignal.timeout(gatewayStartMs)]);
      // The obstacle may be gone by now, and the caller does not wait for a backoff.
      if (this.#startError !== undefined && !this.#isUp()) {
        this.#startError = undefined;
        this.#process?.restart();
      }
      for (;;) {
        await this.#untilUp(deadline);
        try {
          return await this.#client.apply(policies);
        } catch (error) {
          // A gateway that has just died is replaced within this call.
          if (!hasCode(error, 'unavailable') || deadline.aborted) throw error;
          await systemClock.sleep(gatewayRetryMs);
        }
      }
    });
  }

  /** Whether the gateway runs, which mode this agent supervises it in, and its counters. */
  async status(): Promise<{
    readonly mode: ProcessStatus['mode'] | undefined;
    readonly pid: number;
    readonly health: GatewayHealth | undefined;
  }> {
    const health = await this.#client.health().catch(() => undefined);
    return { mode: this.#process?.mode(), pid: health?.pid ?? 0, health };
  }

  /** Ends the supervision. With `leaveRunning` the gateway goes on serving the sandboxes that run on; otherwise it is ended. */
  async close(options: { readonly leaveRunning: boolean }): Promise<void> {
    if (this.#life.signal.aborted) return;
    this.#life.abort(new DroverError('unavailable', 'the agent is stopping'));
    await this.#serial.idle();
    const attached = this.#process?.mode() === 'attach';
    if (options.leaveRunning) this.#process?.release();
    else await this.#process?.stop();
    if (!options.leaveRunning && attached) await this.#endRecorded();
    this.#client.close();
  }

  #isUp(): boolean {
    return this.#process?.status().state === 'running';
  }

  /** Attaches or launches if neither has happened, and waits until the gateway is healthy. @throws {DroverError} unavailable */
  async #untilUp(deadline: AbortSignal): Promise<void> {
    try {
      deadline.throwIfAborted();
      if (this.#process === undefined) await this.#attachOrLaunch();
      while (!this.#isUp()) {
        const state = this.#process?.status().state;
        // The supervisor goes on trying; the caller gets the reason instead of a wait.
        if (this.#startError !== undefined && (state === 'restarting' || state === 'circuit-open')) break;
        await this.#changes.wait(deadline);
      }
      if (this.#isUp()) return;
    } catch (error) {
      throw this.#unavailable(error);
    }
    throw this.#unavailable(undefined);
  }

  #unavailable(cause: unknown): DroverError {
    const why = this.#startError?.message ?? this.#process?.status().lastError;
    return new DroverError('unavailable', `the gateway does not start${why === undefined ? '' : `: ${why}`}`, {
      hint: this.#startError?.hint ?? "see the gateway in the agent's log",
      cause,
    });
  }

  async #attachOrLaunch(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const health = await this.#client.health(gatewayAdoptMs).catch(() => undefined);
    const place = `${this.#options.address}:${this.#options.port}`;
    if (health?.programVersion === programVersion && health.listening.includes(place)) {
      this.#logger.info({ gatewayPid: health.pid, version: String(health.version) }, 'attached to the running gateway');
      this.#supervise({ name: 'gateway', health: this.#health() });
      return;
    }
    await this.#endRecorded();
    this.#launch();
  }

  #launch(): void {
    const { command, address, port } = this.#options;
    const user = process.getuid?.() === 0 ? ['--user', gatewayUser] : [];
    const env: Record<string, string> = {};
    for (const name of ['PATH', 'DROVER_LOG']) if (process.env[name] !== undefined) env[name] = process.env[name];
    this.#supervise(
      daemon(
        {
          name: 'gateway',
          argv: [...command, '--control-socket', join(this.#directory, 'control.sock'), '--listen', `${address}:${port}`, ...user],
          env,
          outlivesSupervisor: true,
          health: this.#health(),
          onLine: (line, pid) => {
            const error = relayLogLine(this.#logger, { process: 'gateway', childPid: pid }, line);
            if (error !== undefined && !this.#isUp()) this.#startError = error;
          },
          policy: { stopGraceMs: gatewayStopGraceMs, restartUnhealthyAfterMs: 0 },
        },
        this.#logger,
      ),
    );
  }

  #supervise(spec: ProcessSpec): void {
    this.#process = new SupervisedProcess(spec, { onChange: (status, announcement) => this.#onChange(status, announcement) });
    this.#process.start();
  }

  #onChange({ mode, state, lastError, restarts }: ProcessStatus, announcement: Announcement | undefined): void {
    this.#changes.notify();
    if (announcement === undefined) return;
    const level = announcement === 'running' || announcement === 'stopped' ? 'info' : 'warn';
    this.#logger[level]({ process: 'gateway', mode, state, restarts, lastError }, `gateway: ${announcement}`);
    if (announcement === 'running') this.#startError = undefined;
    // S-2: attach mode restarts nothing. The agent ends such a gateway and launches its own.
    if (announcement === 'unhealthy' && mode === 'attach') void this.#replaceAttached();
  }

  async #replaceAttached(): Promise<void> {
    const attached = this.#process;
    try {
      await attached?.stop();
      await this.#endRecorded();
    } catch (error) {
      this.#logger.error({ err: String(error) }, 'the attached gateway cannot be ended');
    }
    if (!this.#life.signal.aborted && this.#process === attached) this.#launch();
  }

  /** The open call for refusals is the connection by which a dead gateway is noticed immediately. */
  #health(): Health {
    return {
      everyMs: gatewayProbeMs,
      dial: () => {
        const call = new AbortController();
        const lost = this.#client.watchRefusals((refusal) => this.#options.onRefusal?.(refusal), call.signal);
        const ping = async (): Promise<undefined> => {
          const { version } = await this.#client.health();
          if (version !== this.#client.confirmedVersion) void this.#reapply();
        };
        return Promise.resolve({ lost, ping, close: () => call.abort() });
      },
    };
  }

  /** A gateway that was restarted, or took another agent's table, has other policies than this agent's. Tried again at the next ping. */
  async #reapply(): Promise<void> {
    const policies = this.#policies;
    if (policies === undefined || this.#serial.waiting > 0) return;
    await this.#serial
      .run(async () => await this.#client.apply(policies))
      .catch((error: unknown) => this.#logger.error({ err: String(error) }, 'the policies cannot be applied yet'));
  }

  /** Ends the gateway that recorded itself, if that process still exists. */
  async #endRecorded(): Promise<void> {
    const recorded = await readFile(join(this.#directory, gatewayIdentityFile), 'utf8').then(
      (text) => JSON.parse(text) as ProcessIdentity,
      () => undefined,
    );
    if (recorded === undefined || !isRunning(recorded)) return;
    this.#logger.info({ gatewayPid: recorded.pid }, 'ending the earlier gateway');
    await endProcess(recorded, gatewayStopGraceMs);
  }
}
