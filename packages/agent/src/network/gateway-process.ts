import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, SerialExecutor, systemClock, version as programVersion, type Logger } from '@drover/foundation';
import { GatewayClient, type GatewayHealth, type GatewayRefusal, type SandboxPolicy } from '@drover/gateway';
import { isSameProcess, processStart } from '@drover/linux';
import { SupervisedProcess, type ProcessStatus } from '@drover/supervisor';
import { gatewayAdoptMs, gatewayProbeMs, gatewayStartMs, gatewayStopGraceMs, gatewayThreads } from '../limits.ts';
import { endProcess } from './process-identity.ts';

export interface GatewayProcessOptions {
  /** Its own; the control socket and the process's identity are kept in `<stateDirectory>/gateway`. */
  readonly stateDirectory: string;
  /** The program and its first arguments, to which those of `drover gateway` are added: `[node, cli, 'gateway']`. */
  readonly command: readonly [string, ...string[]];
  /** The whole environment of the process. Default: PATH, DROVER_LOG and the number of threads. */
  readonly env?: Readonly<Record<string, string>>;
  /** Where the egress proxy listens. The address must be there when the first policies are applied. */
  readonly address: string;
  readonly port: number;
  /** Whom the gateway becomes. Default, for root: 64213, an id that nobody else has. */
  readonly runAs?: { readonly uid: number; readonly gid: number };
  /** Called for each report of refused attempts, while the gateway runs. */
  readonly onRefusal?: (refusal: GatewayRefusal) => void;
  readonly logger: Logger;
}

const gatewayUser = { uid: 64_213, gid: 64_213 };

/**
 * The gateway of a host, kept running by the agent.
 *
 * An agent that is killed leaves the gateway serving the sandboxes with the last policies. The next agent takes it over
 * by its control socket when it is of the same version and listens where it should, so that no connection breaks; else it ends it and
 * starts its own, which refuses everything until it has the policies. In neither case can anything pass that was not allowed.
 */
export class GatewayProcess {
  readonly #options: GatewayProcessOptions;
  readonly #logger: Logger;
  readonly #directory: string;
  readonly #client: GatewayClient;
  readonly #serial = new SerialExecutor();
  readonly #life = new AbortController();
  #mode: 'down' | 'launched' | 'adopted' = 'down';
  #adoptedPid = 0;
  #process: SupervisedProcess | undefined;
  #policies: readonly SandboxPolicy[] | undefined;
  #watching: Promise<void> | undefined;
  #refusals: Promise<void> | undefined;
  #reapplying = false;
  /** Why it cannot run, in its own words; undefined once it does. */
  #complaint: { readonly message: string; readonly hint: string | undefined } | undefined;

  constructor(options: GatewayProcessOptions) {
    this.#options = options;
    this.#logger = options.logger;
    this.#directory = join(options.stateDirectory, 'gateway');
    this.#client = new GatewayClient(this.#socket);
  }

  /**
   * Puts a table in force, taking over or starting the gateway first if need be. A table that it could not be given for what may
   * pass is tried again, whatever its caller does about it. @throws {DroverError} unavailable, invalid-argument
   */
  async apply(policies: readonly SandboxPolicy[]): Promise<void> {
    try {
      await this.#serial.run(async () => {
        this.#policies = policies;
        // Somebody needs it now, and does not wait for a backoff: what stood in its way may be gone.
        const state = this.#process?.status().state;
        if (this.#complaint !== undefined && (state === 'restarting' || state === 'circuit-open')) this.#process?.restart();
        await this.#ensureUp();
        this.#refusals ??= this.#watchRefusals();
        await this.#client.apply(policies);
      });
    } catch (error) {
      if (DroverError.from(error).transient) void this.#reapply();
      throw error;
    }
  }

  /** Whether it runs, as its own process or one taken over, and its counters. */
  async status(): Promise<{
    readonly mode: 'down' | 'launched' | 'adopted';
    readonly pid: number;
    readonly health: GatewayHealth | undefined;
  }> {
    const pid = this.#mode === 'adopted' ? this.#adoptedPid : (this.#process?.status().pid ?? 0);
    const health = await this.#client.health().catch(() => undefined);
    return { mode: this.#mode, pid, health };
  }

  /** Stops watching; with `leaveRunning` the gateway goes on serving the sandboxes that run on, else it is ended. */
  async close(options: { readonly leaveRunning: boolean }): Promise<void> {
    if (this.#life.signal.aborted) return;
    this.#life.abort();
    await Promise.all([this.#watching, this.#refusals]);
    await this.#serial.idle();
    if (options.leaveRunning) this.#process?.letGo();
    else if (this.#mode === 'adopted') await this.#endRecorded();
    else await this.#process?.stop();
    this.#client.close();
  }

  get #socket(): string {
    return join(this.#directory, 'control.sock');
  }

  get #identityFile(): string {
    return join(this.#directory, 'process.json');
  }

  async #ensureUp(): Promise<void> {
    if (this.#life.signal.aborted) throw new DroverError('unavailable', 'the gateway is being let go of');
    if (this.#mode === 'adopted') {
      if ((await this.#recorded()) !== undefined) return;
      this.#adoptedIsGone();
    }
    if (this.#mode === 'down') {
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
      if (await this.#adopt()) return;
      await this.#endRecorded();
      this.#launch();
    }
    const signal = AbortSignal.any([this.#life.signal, AbortSignal.timeout(gatewayStartMs)]);
    try {
      await this.#running(signal);
    } catch (error) {
      const why = this.#complaint?.message ?? this.#process?.status().lastError;
      throw new DroverError('unavailable', `the gateway does not come up${why === undefined ? '' : `: ${why}`}`, {
        hint: this.#complaint?.hint ?? "see the gateway in the agent's log",
        cause: error,
      });
    }
  }

  /** Resolves when it runs. One that has said why it cannot is not waited for, though the supervisor goes on trying. */
  async #running(signal: AbortSignal): Promise<void> {
    for (;;) {
      await this.#process?.waitFor(['running', 'restarting', 'circuit-open'], signal);
      if (this.#process?.status().state === 'running') return;
      if (this.#complaint !== undefined) throw new DroverError('unavailable', this.#complaint.message);
      await this.#process?.waitFor(['running', 'starting'], signal);
    }
  }

  /** The gateway may end and be replaced: the call is made again for as long as this agent looks after it. */
  async #watchRefusals(): Promise<void> {
    const { onRefusal } = this.#options;
    const { signal } = this.#life;
    if (onRefusal === undefined) return;
    while (!signal.aborted) {
      await this.#client.watchRefusals(onRefusal, signal);
      // Rejects only when the agent lets go of the gateway.
      await systemClock.sleep(gatewayProbeMs, signal).catch(() => undefined);
    }
  }

  async #adopt(): Promise<boolean> {
    const health = await this.#client.health(gatewayAdoptMs).catch(() => undefined);
    if (health === undefined) return false;
    // The agent before may have been killed before it wrote this down; only root can make the socket that answers so.
    await this.#record(health.pid);
    const identity = await this.#recorded();
    const place = `${this.#options.address}:${this.#options.port}`;
    if (identity === undefined || health.programVersion !== programVersion || !health.listening.includes(place)) return false;
    this.#mode = 'adopted';
    this.#adoptedPid = identity.pid;
    this.#watching = this.#watchAdopted();
    this.#logger.info({ gatewayPid: identity.pid, version: String(health.version) }, 'running gateway taken over');
    return true;
  }

  /** One that was taken over is nobody's child here: its health is all there is to see. */
  async #watchAdopted(): Promise<void> {
    const { signal } = this.#life;
    let failures = 0;
    for (;;) {
      try {
        await systemClock.sleep(gatewayProbeMs, signal);
      } catch {
        return;
      }
      failures = await this.#client.health().then(
        () => 0,
        () => failures + 1,
      );
      const there = (await this.#recorded()) !== undefined;
      // An apply may have found it gone first.
      if (this.#mode !== 'adopted') return;
      if (there && failures < 3) continue;
      this.#adoptedIsGone();
      // Its own child from now on, watched by the supervisor; the table goes along.
      await this.#reapply();
      return;
    }
  }

  #adoptedIsGone(): void {
    this.#logger.warn({ gatewayPid: this.#adoptedPid }, 'the gateway that was taken over is gone; a new one starts');
    this.#mode = 'down';
  }

  #launch(): void {
    const { command, address, port, env, runAs = process.getuid?.() === 0 ? gatewayUser : undefined } = this.#options;
    const user = runAs === undefined ? [] : ['--user', `${runAs.uid}:${runAs.gid}`];
    const inherited: Record<string, string> = { UV_THREADPOOL_SIZE: String(gatewayThreads) };
    for (const name of ['PATH', 'DROVER_LOG']) if (process.env[name] !== undefined) inherited[name] = process.env[name];
    this.#process = new SupervisedProcess(
      {
        name: 'gateway',
        argv: [...command, '--control-socket', this.#socket, '--listen', `${address}:${port}`, ...user],
        env: env ?? inherited,
        probe: async () => void (await this.#client.health()),
        probeEveryMs: gatewayProbeMs,
        onLine: (line, pid) => this.#logLine(line, pid),
        policy: { stopGraceMs: gatewayStopGraceMs },
      },
      { logger: this.#logger, onChange: (status, announced) => this.#onChange(status, announced) },
    );
    this.#mode = 'launched';
    this.#process.start();
    // Written down before it is ready: an agent that is killed now leaves a gateway that the next one knows of.
    const { pid } = this.#process.status();
    if (pid !== 0) void this.#record(pid);
  }

  #onChange(status: ProcessStatus, announced: string | undefined): void {
    if (announced === 'running') {
      this.#complaint = undefined;
      void this.#record(status.pid);
      // A gateway that was restarted knows no policies; the first one gets them from whoever waits in `apply`.
      if (status.restarts > 0) void this.#reapply();
    }
    if (announced === 'unhealthy') this.#process?.restart();
  }

  /** Until it has them, everything is refused: tried again for as long as this agent looks after the gateway. */
  async #reapply(): Promise<void> {
    if (this.#reapplying) return;
    this.#reapplying = true;
    try {
      while (!this.#life.signal.aborted) {
        try {
          await this.#serial.run(async () => {
            await this.#ensureUp();
            if (this.#policies !== undefined) await this.#client.apply(this.#policies);
          });
          return;
        } catch (error) {
          if (this.#life.signal.aborted) return;
          this.#logger.error({ err: String(error) }, 'the gateway has no policies yet; trying again');
          // Ends early, with an error, when the agent lets go of the gateway.
          await systemClock.sleep(gatewayProbeMs, this.#life.signal).catch(() => undefined);
        }
      }
    } finally {
      this.#reapplying = false;
    }
  }

  /** The gateway's lines are log entries of this program's own kind. */
  #logLine(line: string, pid: number): void {
    try {
      const { level, time: _time, pid: _pid, name: _name, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
      if (level === 50 && this.#process?.status().state !== 'running') {
        const { hint } = fields;
        this.#complaint = { message: String(msg), hint: typeof hint === 'string' ? hint : undefined };
      }
      const write = level === 20 ? 'debug' : level === 30 ? 'info' : level === 40 ? 'warn' : 'error';
      this.#logger[write]({ process: 'gateway', childPid: pid, ...fields }, String(msg));
    } catch {
      this.#logger.info({ process: 'gateway', childPid: pid }, line);
    }
  }

  async #record(pid: number): Promise<void> {
    try {
      await writeFile(this.#identityFile, JSON.stringify({ pid, startTime: processStart(pid) }), { mode: 0o600 });
    } catch (error) {
      this.#logger.warn({ err: String(error) }, 'the gateway cannot be taken over by a later agent');
    }
  }

  /** The process that was recorded, if it is still that one: a pid alone may be anybody's by now. */
  async #recorded(): Promise<{ readonly pid: number } | undefined> {
    try {
      const { pid, startTime } = JSON.parse(await readFile(this.#identityFile, 'utf8')) as { pid: number; startTime: string };
      return isSameProcess(pid, startTime) ? { pid } : undefined;
    } catch {
      // No file.
      return undefined;
    }
  }

  async #endRecorded(): Promise<void> {
    const identity = await this.#recorded();
    if (identity === undefined) return;
    this.#logger.info({ gatewayPid: identity.pid }, 'ending an earlier gateway');
    await endProcess(identity.pid, async () => (await this.#recorded()) !== undefined, gatewayStopGraceMs);
  }
}
