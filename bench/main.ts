/** `npm run bench [-- --quick] [-- --only NAME]`: measures, and writes bench/results/latest.json and docs/benchmarks.md. */
import { chmod, cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultStandbys } from '@drover/agent';
import { connectDrover } from '@drover/sdk';
import { eventually, readyStandbys, repository, TestDrover } from '../e2e/harness/index.ts';
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

const names = ['create', 'memory', 'sessions', 'hub', 'hosts'] as const;
type Name = (typeof names)[number];
/** The longest that a run may take, ms. Then it is ended, and what it started with it. */
const limitMs = { full: 1_200_000, quick: 180_000 };
/** Addresses for the sandboxes of this run: not those of an agent that may run here. */
const pool = '10.198.0.0/16';
const plainPool = '10.199.0.0/16';
/** CPUs that the host offers: placement counts a tenth of one for each sandbox, and 50 at once are to be made at once, not to wait for room. */
const offeredCpus = '16';

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { quick: { type: 'boolean', default: false }, only: { type: 'string' } } });
  const { quick, only } = values;
  if (only !== undefined && !names.includes(only as Name)) throw new Missing(`there is no measurement ${only}: ${names.join(', ')}`);
  const wanted = (name: Name): boolean => only === undefined || only === name;
  if (process.getuid?.() !== 0) throw new Missing('the measurements make sandboxes and must run as root');
  needProgram('runc', 'runc');
  needProgram('busybox', 'busybox-static');
  if (wanted('hosts')) {
    needOpenFiles(quick ? 2_000 : 12_000);
    needMemory((quick ? 1 : 4) * 2 ** 30, 'measuring connected hosts');
  }
  const began = Date.now();
  const machine = machineFacts();
  const sections: Section[] = [];
  const add = (section: Section): void => {
    sections.push(section);
    console.log(`${section.name}: done after ${Math.round((Date.now() - began) / 1000)} s`);
  };
  const results = (): Results => {
    const tookSeconds = Math.round((Date.now() - began) / 1000);
    return { at: new Date(began).toISOString(), quick, tookSeconds, machine, sections };
  };

  await using held = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(tmpdir(), 'drover-bench-'));
  held.defer(async () => await rm(scratch, { recursive: true, force: true }));
  const giveUp = (why: string): void => {
    console.error(`bench: ${why}; what was measured until then:\n\n${reportOf(results())}`);
    // What was started goes, whatever the measurements are at.
    void held.disposeAsync().finally(() => process.exit(1));
  };
  const limit = quick ? limitMs.quick : limitMs.full;
  const timer = setTimeout(() => giveUp(`took longer than ${limit / 1000} s and was ended`), limit);
  held.defer(() => clearTimeout(timer));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => giveUp('interrupted'));

  try {
    if (wanted('create') || wanted('memory') || wanted('sessions')) await onOneDrover(held, quick, wanted, add);
    if (wanted('hub')) add(await measureHub(quick, scratch));
    if (wanted('hosts')) add(await measureHosts(quick, scratch));
  } catch (error) {
    console.error(`bench: what was measured until it failed:\n\n${reportOf(results())}`);
    throw error;
  }

  const whole = results();
  const report = reportOf(whole);
  // A part of the measurements replaces nothing, and a quick look no whole run.
  const path = join(repository, 'bench', 'results', 'latest.json');
  const last = await readFile(path, 'utf8').then(
    (text) => JSON.parse(text) as Results,
    () => undefined,
  );
  if (only === undefined && (!quick || last?.quick !== false)) {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, `${JSON.stringify(whole, undefined, 2)}\n`);
    await writeFile(join(repository, 'docs', 'benchmarks.md'), report);
  }
  console.log(report);
}

/** What needs sandboxes: one Drover, one root of busybox alone, and one Docker daemon where there is one. */
async function onOneDrover(
  outer: AsyncDisposableStack,
  quick: boolean,
  wanted: (name: Name) => boolean,
  add: (section: Section) => void,
): Promise<void> {
  await using held = outer.use(new AsyncDisposableStack());
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
    await using plain = await TestDrover.start(['--pool', plainPool, '--cpus', offeredCpus, '--standbys', '0']);
    const plainClient = await connectDrover(await plain.connection());
    held.defer(() => plainClient.close());
    add(
      await measureCreate({
        quick,
        scratch: directory,
        quiet: async () => {
          await eventually('the standbys are ready', async () => (await readyStandbys(drover.data)) === standbys);
        },
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
  if (wanted('memory')) add(await measureMemory({ client, image, stateDirectory: join(drover.data, 'host'), docker }));
  if (wanted('sessions')) add(await measureSessions({ quick, scratch: directory, client, image }));
}

try {
  await main();
} catch (error) {
  if (error instanceof Missing) console.error(`bench: ${error.message}`);
  else console.error('bench: failed:', error);
  process.exitCode = 1;
}
