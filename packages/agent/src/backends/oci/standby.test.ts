import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { SandboxId } from '@drover/foundation';
import { isSameProcess } from '@drover/linux';
import { openOciHarness, type OciHarness, type Overrides } from '../testing/oci-harness.ts';
import type { StartRequest } from '../backend.ts';
import { layoutOf } from './layout.ts';
import { readRecord, type ContainerRecord } from './container-record.ts';

/** What any sandbox does, one made of a standby does too: that is the conformance suite's (oci-runtime.test.ts). */
describe('a sandbox that is made of a standby', () => {
  let harness: OciHarness;
  const made: SandboxId[] = [];
  const lifetime = (): AbortSignal => AbortSignal.timeout(20_000);

  beforeAll(async () => {
    harness = await openOciHarness('runc');
  });
  afterEach(async () => {
    for (const id of made.splice(0)) await harness.backend.destroy(id);
  });
  afterAll(async () => {
    await harness.close();
  });

  const recordOf = async (id: SandboxId): Promise<ContainerRecord | undefined> =>
    await readRecord(layoutOf(harness.stateDirectory, id).record);
  /** One that leaves in /out what the script says. */
  const requestOf = async (script: string, overrides: Overrides = {}): Promise<StartRequest> => {
    const request = await harness.requestOf(['/bin/sh', '-c', `( ${script} ) > /out 2>&1`], overrides);
    made.push(request.id);
    return request;
  };
  const ended = async (request: StartRequest): Promise<string> => {
    await harness.backend.waitExit(request.id, lifetime());
    return await readFile(join(layoutOf(harness.stateDirectory, request.id).root, 'out'), 'utf8');
  };

  test('is the process that stood by, and has the root, the name, the mounts and the limits that any other has', async () => {
    const script = [
      'hostname; cat /etc/hostname; ls -a / /.drover/run; id; readlink /proc/1/cwd; readlink /proc/1/root',
      'cut -d" " -f5- /proc/self/mountinfo | sort',
      'cd /sys/fs/cgroup && cat */memory.limit_in_bytes */memory.memsw.limit_in_bytes */cpu.cfs_quota_us */cpu.cfs_period_us */pids.max *.max',
      'cat /proc/self/status | grep -E "Cap|Seccomp|NoNewPrivs"; ulimit -a',
    ].join('; ');
    const settings = {
      hostname: 'chosen',
      secretsBytes: 65_536,
      limits: { cpuMillis: 500, memoryBytes: 64 * 1024 ** 2, diskBytes: 0, pids: 50, shmBytes: 16 * 1024 ** 2 },
    };
    const request = await requestOf(script, settings);
    const standby = await harness.prestart();
    const { pid } = (await recordOf(standby)) ?? {};
    await harness.backend.create(request, lifetime(), standby);
    expect(await recordOf(request.id)).toMatchObject({ pid, container: standby });
    const plain = await requestOf(script, settings);
    await harness.backend.create(plain, lifetime());
    // Each has a range of uids of its own.
    const alike = (text: string, { id }: StartRequest): string => text.replaceAll(id, 'ID').replaceAll(/([ug]id=)1000\d+/g, '$1N');
    const [text, expected] = [alike(await ended(request), request), alike(await ended(plain), plain)];
    expect(text).toBe(expected);
    expect(text).toContain('chosen');
    expect(text).toContain(String((64 + 96) * 1024 ** 2));
    for (const { id } of [request, plain]) {
      await harness.backend.destroy(id);
      expect(await harness.leftovers(id)).toEqual([]);
    }
  });

  test('of one that has ended meanwhile, it is made as without', async () => {
    const request = await requestOf('echo made');
    const standby = await harness.prestart();
    const { pid, pidStart } = (await recordOf(standby)) ?? {};
    if (pid === undefined) throw new Error('the standby has no process');
    process.kill(pid, 'SIGKILL');
    while (isSameProcess(pid, pidStart)) await new Promise((resolve) => setImmediate(resolve));
    await harness.backend.create(request, lifetime(), standby);
    expect(await ended(request)).toBe('made\n');
    expect((await recordOf(request.id))?.container).toBeUndefined();
    await harness.backend.destroy(request.id);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });

  test('in a root whose /dev is a link, it is made as without, and nothing is mounted where the link leads', async () => {
    const layer = join(harness.directory, 'linked');
    await mkdir(layer);
    await symlink('/tmp', join(layer, 'dev'));
    const request = await requestOf('echo made', { layers: [harness.busybox, layer] });
    const standby = await harness.prestart();
    await harness.backend.create(request, lifetime(), standby);
    expect(await ended(request)).toBe('made\n');
    await harness.backend.destroy(request.id);
    expect(await harness.leftovers(request.id)).toEqual([]);
    await rm(layer, { recursive: true });
  });

  test('R-18: has volumes where links of its image lead, and nowhere else', async () => {
    const layer = join(harness.directory, 'links');
    await mkdir(join(layer, 'real'), { recursive: true });
    // From the root of the host these would lead elsewhere, or nowhere.
    await symlink('/real', join(layer, 'link'));
    await symlink('../../../../real', join(layer, 'far'));
    const volume = join(harness.directory, 'volume');
    await mkdir(volume);
    await writeFile(join(volume, 'file'), 'of the host');
    const script = [
      'for d in data/here real/a real/b; do touch /$d/w && rm /$d/w; ls -n /$d; done; cat /etc/one; ls -ldn /data /real/a; touch /data/here/x',
      'grep -E " (/data|/real|/etc)" /proc/self/mountinfo | cut -d" " -f5-',
    ].join('; ');
    const settings = {
      layers: [harness.busybox, layer],
      mounts: [
        { source: volume, target: '/data/here', readOnly: true },
        { source: volume, target: '/link/a', readOnly: false },
        { source: volume, target: '/far/b', readOnly: false },
        { source: join(volume, 'file'), target: '/etc/one', readOnly: true },
      ],
    };
    const request = await requestOf(script, settings);
    const standby = await harness.prestart();
    await harness.backend.create(request, lifetime(), standby);
    expect((await recordOf(request.id))?.container).toBe(standby);
    const plain = await requestOf(script, settings);
    await harness.backend.create(plain, lifetime());
    const alike = (text: string): string => text.replaceAll(/\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) .{9}/g, 'WHEN');
    const text = alike(await ended(request));
    expect(text).toContain('of the host');
    expect(text).toContain('Read-only file system');
    expect(text).toBe(alike(await ended(plain)));
    for (const { id } of [request, plain]) {
      await harness.backend.destroy(id);
      expect(await harness.leftovers(id)).toEqual([]);
    }
  });

  test('R-9: one that cannot have all of its mounts runs nothing before it is made as without', async () => {
    const volume = join(harness.directory, 'once');
    await mkdir(volume);
    const layer = join(harness.directory, 'file');
    await mkdir(layer);
    await writeFile(join(layer, 'data'), 'no directory');
    // Where a directory of it should be the image has a file: neither a standby nor the runtime program can mount there.
    const mounts = [
      { source: volume, target: '/seen', readOnly: false },
      { source: volume, target: '/data/here', readOnly: false },
    ];
    const request = await harness.requestOf(['/bin/sh', '-c', 'echo ran >> /seen/ran'], { layers: [harness.busybox, layer], mounts });
    const standby = await harness.prestart();
    await expect(harness.backend.create(request, lifetime(), standby)).rejects.toThrow(/nothing can be mounted on \/data\/here/);
    expect(await readdir(volume)).toEqual([]);
    for (const id of [request.id, standby]) expect(await harness.leftovers(id)).toEqual([]);
  });

  test('R-9: a sandbox of a standby is known to the next agent, and started again; a standby is not kept', async () => {
    const request = await harness.requestOf(['/bin/sleep', '600']);
    made.push(request.id);
    const standby = await harness.prestart();
    await harness.backend.create(request, lifetime(), standby);
    const other = await harness.prestart();
    const next = await harness.restarted();
    expect(await next.sweep(new Set([request.id]))).toEqual([other]);
    expect(await harness.leftovers(other)).toEqual([]);
    expect(await next.inspect(request.id)).toMatchObject({ phase: 'running', pid: (await recordOf(request.id))?.pid });
    await next.kill(request.id, 'SIGKILL');
    await next.waitExit(request.id, lifetime());
    expect(await next.inspect(request.id)).toMatchObject({ phase: 'ended', exitCode: 137 });
    await next.start(harness.again(request, { kind: 'run' }), lifetime());
    expect(await next.inspect(request.id)).toMatchObject({ phase: 'running' });
    await next.destroy(request.id);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });

  test('one that exists needs none: what came with the request goes', async () => {
    const request = await harness.requestOf(['/bin/sleep', '600']);
    made.push(request.id);
    await harness.backend.create(request, lifetime());
    const standby = await harness.prestart();
    await harness.backend.create(request, lifetime(), standby);
    expect(await recordOf(standby)).toBeUndefined();
    await harness.backend.destroy(request.id);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });

  test('R-9: ends with its agent', async () => {
    const standby = await harness.prestartAndCrash();
    const { pid, pidStart } = (await recordOf(standby)) ?? {};
    expect(pid).toBeTypeOf('number');
    while (isSameProcess(pid, pidStart)) await new Promise((resolve) => setTimeout(resolve, 5));
    expect(await (await harness.restarted()).sweep(new Set())).toEqual([standby]);
    expect(await harness.leftovers(standby)).toEqual([]);
  });
});
