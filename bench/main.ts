/** `npm run bench [-- --quick] [-- --only NAME] [-- --limit SECONDS]`: measures, and writes bench/results/latest.json and docs/benchmarks.md. */
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultStandbys } from '@drover/agent';
import { connectDrover, type DroverClient } from '@drover/sdk';
import {
  endProcesses,
  eventually,
  processesUnder,
  readyStandbys,
  removeContainers,
  removeDirectory,
  removeTraces,
  repository,
  TestDrover,
} from '../e2e/harness/index.ts';
import { measureCopy } from './copy/copy.ts';
import { measureCpu, type MeasuredHost } from './create/cpu.ts';
import { measureCreate } from './create/create.ts';
import { Docker } from './create/docker.ts';
import { commandLine, throughApi } from './create/first-byte.ts';
import { bareRunc } from './create/runc.ts';
import { measureHosts } from './hosts/hosts.ts';
import { measureHub } from './hub/hub.ts';
import { machineFacts, Missing, needMemory, needOpenFiles, needProgram } from './machine.ts';
import { measureMemory } from './memory/memory.ts';
import { measureSessions } from './sessions/sessions.ts';
import { reportOf } from './report.ts';
import type { Results, Section } from './result.ts';

const names = ['create', 'cpu', 'memory', 'copy', 'sessions', 'hub', 'hosts'] as const;
type Name = (typeof names)[number];
/** The longest that a run may take, ms. Then it is ended, and what it started with it. */
const limitMs = { full: 1_200_000, quick: 180_000 };
/** Addresses for the sandboxes of this run: not those of an agent that may run here. */
const pool = '10.198.0.0/16';
const plainPool = '10.199.0.0/16';
/** CPUs that the host offers: placement counts a tenth of one for each sandbox, and 50 at once are to be made at once, not to wait for room. */
const offeredCpus = '16';

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { quick: { type: 'boolean', default: false }, only: { type: 'string' }, limit: { type: 'string' } },
  });
  const { quick, only } = values;
  if (only !== undefined && !names.includes(only as Name)) throw new Missing(`there is no measurement ${only}: ${names.join(', ')}`);
  const limit = values.limit === undefined ? (quick ? limitMs.quick : limitMs.full) : Number(values.limit) * 1000;
  if (!(limit > 0)) throw new Missing(`--limit ${values.limit} is not a number of seconds`);
  const wanted = (name: Name): boolean => only === undefined || only === name;
  if (process.getuid?.() !== 0) throw new Missing('the measurements make sandboxes and must run as root');
  needProgram('runc', 'runc');
  needProgram('busybox', 'busybox-static');
  if (wanted('hosts')) {
    needOpenFiles(quick ? 2_000 : 12_000);
    needMemory((quick ? 1 : 4) * 2 ** 30, 'measuring connected hosts');
  }
  const record = new RunRecord(quick, names.filter(wanted));
  const scratch = await mkdtemp(join(tmpdir(), 'drover-bench-'));
  // Everything that this run starts has its files below, so that it can be found and ended whatever the run was doing.
  process.env['TMPDIR'] = scratch;
  await chmod(scratch, 0o711);

  const ended = Promise.withResolvers<never>();
  const timer = setTimeout(() => ended.reject(new Ended(`it took longer than ${limit / 1000} s`)), limit);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => ended.reject(new Ended(`interrupted by ${signal}`)));
  const measuring = measureAll(quick, scratch, wanted, record);
  measuring.catch(() => undefined);
  try {
    await Promise.race([measuring, ended.promise]);
  } catch (error) {
    record.end(error instanceof Ended ? error.message : 'it failed');
    if (!(error instanceof Ended)) throw error;
  } finally {
    clearTimeout(timer);
    console.log(reportOf(record.results()));
    await endEverything(scratch);
  }
  const whole = record.results();
  if (whole.missing.length > 0) {
    process.exitCode = 1;
    return;
  }
  // A part of the measurements replaces nothing, and a quick look no whole run.
  const path = join(repository, 'bench', 'results', 'latest.json');
  const last = await readFile(path, 'utf8').then(
    (text) => JSON.parse(text) as Results,
    () => undefined,
  );
  if (only === undefined && (!quick || last?.quick !== false)) {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, `${JSON.stringify(whole, undefined, 2)}\n`);
    await writeFile(join(repository, 'docs', 'benchmarks.md'), reportOf(whole));
  }
}

/** The run was ended before it had measured everything. */
class Ended extends Error {}

/** What was measured so far. */
class RunRecord {
  readonly #began = Date.now();
  readonly #machine = machineFacts();
  readonly #quick: boolean;
  readonly #sections = new Map<string, Section>();
  /** Why a section that was asked for is not whole. */
  readonly #missing: Map<string, string>;
  #ended = false;

  constructor(quick: boolean, asked: readonly Name[]) {
    this.#quick = quick;
    this.#missing = new Map(asked.map((name) => [name, 'not begun']));
  }

  /** A section as it is so far. */
  readonly progress = (section: Section): void => {
    this.#sections.set(section.name, section);
    console.error(`${section.name}: ${section.rows.length} rows after ${this.#seconds} s`);
  };

  readonly add = (section: Section): void => {
    this.#sections.set(section.name, section);
    this.#missing.delete(section.name);
    console.error(`${section.name}: done after ${this.#seconds} s`);
  };

  fail(names: readonly string[], error: unknown): void {
    // After the end, a failure is that of the processes which were ended.
    if (this.#ended) return;
    console.error(`bench: ${names.join(', ')} failed:`, error);
    for (const name of names) if (this.#missing.has(name)) this.#missing.set(name, 'failed');
  }

  /** No section comes any more. */
  end(why: string): void {
    this.#ended = true;
    for (const [name, reason] of this.#missing) if (reason === 'not begun') this.#missing.set(name, `not finished, as ${why}`);
  }

  get #seconds(): number {
    return Math.round((Date.now() - this.#began) / 1000);
  }

  results(): Results {
    return {
      at: new Date(this.#began).toISOString(),
      quick: this.#quick,
      tookSeconds: this.#seconds,
      machine: this.#machine,
      sections: [...this.#sections.values()],
      missing: [...this.#missing].map(([name, why]) => `${name} (${why})`),
    };
  }
}

/** Every section that is wanted. One that fails does not keep the others from being measured. */
async function measureAll(quick: boolean, scratch: string, wanted: (name: Name) => boolean, record: RunRecord): Promise<void> {
  const parts: readonly (readonly [readonly Name[], () => Promise<void>])[] = [
    [['create', 'cpu', 'memory', 'copy', 'sessions'], async () => await onOneDrover(quick, wanted, record)],
    [['hub'], async () => record.add(await measureHub(quick, scratch))],
    [['hosts'], async () => record.add(await measureHosts(quick, scratch))],
  ];
  for (const [sections, measure] of parts) {
    const asked = sections.filter(wanted);
    if (asked.length > 0) await measure().catch((error: unknown) => record.fail(asked, error));
  }
}

/** Ends the processes and containers that have files in a directory, and removes it. Bounded, also where they do not end in order. */
async function endEverything(directory: string): Promise<void> {
  for (let round = 0; round < 3; round++) await endProcesses(await processesUnder(directory));
  for (const name of await readdir(directory)) {
    await removeContainers(join(directory, name, 'data', 'host'));
    await removeTraces(join(directory, name, 'data', 'host'));
  }
  await removeDirectory(directory);
}

/** What needs sandboxes: one Drover, one root of busybox alone, and one Docker daemon where there is one. */
async function onOneDrover(quick: boolean, wanted: (name: Name) => boolean, record: RunRecord): Promise<void> {
  const { add } = record;
  await using held = new AsyncDisposableStack();
  const directory = await mkdtemp(join(tmpdir(), 'drover-bench-'));
  held.defer(async () => await rm(directory, { recursive: true, force: true }));
  // Roots of sandboxes are below; their owners are not root.
  await chmod(directory, 0o711);
  const rootfs = join(directory, 'rootfs');
  // All that a container needs, and nothing of the host's.
  for (const name of ['bin', 'dev', 'etc', 'proc', 'sys', 'tmp']) await mkdir(join(rootfs, name), { recursive: true });
  await cp(needProgram('busybox', 'busybox-static'), join(rootfs, 'bin', 'busybox'));
  await Promise.all(['sh', 'echo'].map(async (name) => await cp(join(rootfs, 'bin', 'busybox'), join(rootfs, 'bin', name))));

  const standbys = quick ? 4 : defaultStandbys();
  const drover = held.use(await TestDrover.start(['--pool', pool, '--cpus', offeredCpus, '--standbys', String(standbys)]));
  const client = await connectDrover(await drover.connection());
  held.defer(() => client.close());
  const started = await Docker.start(directory);
  const docker = 'docker' in started ? held.use(started.docker) : undefined;
  const ofDocker = docker === undefined ? [] : [await docker.way(rootfs)];
  const image = `dir:${rootfs}`;

  const quiet = async (): Promise<void> => {
    await eventually('the standbys are ready', async () => (await readyStandbys(drover.data)) === standbys);
  };
  if (wanted('create') || wanted('cpu')) {
    await using plain = await TestDrover.start(['--pool', plainPool, '--cpus', offeredCpus, '--standbys', '0']);
    const plainClient = await connectDrover(await plain.connection());
    held.defer(() => plainClient.close());
    if (wanted('create')) {
      const env = { ...process.env, ...drover.environment };
      const launcher = join(repository, 'drover');
      const typed = (name: string, ofImage: string, words: readonly string[]) =>
        commandLine(
          name,
          () => [launcher, 'run', '--rm', ofImage, '--', ...words],
          env,
          async () => undefined,
        );
      add(
        await measureCreate({
          quick,
          scratch: directory,
          onProgress: record.progress,
          quiet,
          ways: [
            throughApi('API, busybox', client, image),
            throughApi('API, busybox, without standbys', plainClient, image),
            throughApi('API, `host`', client, 'host'),
            typed('`drover run`, busybox', image, ['/bin/busybox', 'echo', 'first']),
            await bareRunc(needProgram('runc', 'runc'), rootfs, directory),
            ...ofDocker,
          ],
          bare: 'runc run',
          absent: 'absent' in started ? [started.absent] : [],
        }),
      );
    }
    if (wanted('cpu')) {
      const hosts = [
        await measuredHost('with standbys', drover, client, quiet),
        await measuredHost('without standbys', plain, plainClient, async () => undefined),
      ];
      add(await measureCpu(hosts, image, quick));
    }
  }
  if (wanted('memory')) add(await measureMemory({ client, image, stateDirectory: join(drover.data, 'host'), docker }));
  if (wanted('copy')) add(await measureCopy({ quick, drover, client, scratch: directory }));
  if (wanted('sessions')) add(await measureSessions({ quick, scratch: directory, client, image }));
}

async function measuredHost(name: string, drover: TestDrover, client: DroverClient, quiet: () => Promise<void>): Promise<MeasuredHost> {
  return {
    name,
    client,
    quiet,
    controlPlane: await drover.pidOf('serve'),
    agent: await drover.pidOf('agent'),
    gateway: await drover.pidOf('gateway'),
    stateDirectory: join(drover.data, 'host'),
  };
}

try {
  await main();
} catch (error) {
  if (error instanceof Missing) console.error(`bench: ${error.message}`);
  else console.error('bench: failed:', error);
  process.exitCode = 1;
}
// What an ended measurement still waits for does not keep this process.
process.exit();
