import { mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError } from '@drover/foundation';
import { Cgroups, mountPoints, Mounts, parseMountTable } from '@drover/linux';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import type { OciBackend } from './oci-backend.ts';
import { openOciHarness, type OciHarness } from '../testing/oci-harness.ts';
import { layoutOf } from './layout.ts';

/** Those of a host whose file system has no mapped owners: mount_setattr(2) fails with EINVAL. */
class MountsWithoutOwners extends Mounts {
  override mapOwners(source: string): never {
    throw new DroverError('runtime-failed', `mapping the owners of ${source}: EINVAL`);
  }
}

describe('R-5: a host that cannot map owners', () => {
  let harness: OciHarness;
  let backend: OciBackend;
  const lifetime = (): AbortSignal => AbortSignal.timeout(15_000);

  beforeAll(async () => {
    harness = await openOciHarness('runc');
    backend = await harness.open({ mounts: new MountsWithoutOwners() });
  });
  afterAll(async () => {
    await harness.close();
  });

  test('is told so', async () => {
    const finding = (await backend.check()).find(({ subject }) => subject === 'user namespaces');
    expect(finding).toMatchObject({ level: 'warning', message: expect.stringContaining('EINVAL') });
  });

  test('still has sandboxes, held by capabilities, seccomp and masked paths, and removes them whole', async () => {
    const request = await harness.requestOf([
      '/bin/sh',
      '-c',
      'exec > /out 2>&1; id -u; cat /proc/self/uid_map; grep CapBnd /proc/self/status; mount -t tmpfs x /tmp',
    ]);
    await backend.create(request, lifetime());
    await backend.waitExit(request.id, lifetime());
    const out = join(layoutOf(harness.stateDirectory, request.id).writable, 'upper/out');
    const text = await readFile(out, 'utf8');
    expect(text).toMatch(/^0\n\s+0\s+0\s+4294967295\nCapBnd:\s00000000800405fb\nmount: .*(permission denied|not permitted)/i);
    expect((await stat(out)).uid).toBe(0);
    await backend.destroy(request.id);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });

  test('R-9: an agent that can map owners adopts what one that could not has made', async () => {
    const request = await harness.requestOf(['/bin/sleep', '600']);
    await backend.create(request, lifetime());
    expect(await harness.backend.inspect(request.id)).toMatchObject({ phase: 'running' });
    await harness.backend.destroy(request.id);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });
});

test('an agent whose PATH has no directories of the administrator finds its programs, and starts sandboxes', async () => {
  const harness = await openOciHarness('runc');
  onTestFinished(async () => {
    vi.unstubAllEnvs();
    await harness.close();
  });
  vi.stubEnv('PATH', '/usr/bin:/bin');
  const findings = await harness.backend.check();
  expect(findings.filter(({ subject }) => ['runtime program', 'disk limits'].includes(subject))).toMatchObject([
    { level: 'ok' },
    { level: 'ok' },
  ]);
  const limits = { cpuMillis: 0, memoryBytes: 0, diskBytes: 32 * 1024 ** 2, pids: 0, shmBytes: 0 };
  const request = await harness.requestOf(['/bin/true'], { limits });
  await harness.backend.create(request, AbortSignal.timeout(15_000));
  await harness.backend.waitExit(request.id, AbortSignal.timeout(15_000));
  expect(await harness.backend.inspect(request.id)).toMatchObject({ exitCode: 0 });
  await harness.backend.destroy(request.id);
});

test('a runtime program that is not there is a problem with a remedy, and no sandbox is left of trying', async () => {
  const harness = await openOciHarness('/nowhere/runc');
  try {
    const finding = (await harness.backend.check()).find(({ subject }) => subject === 'runtime program');
    expect(finding).toMatchObject({ level: 'problem', hint: 'apt-get install runc' });
    const request = await harness.requestOf(['/bin/true']);
    await expect(harness.backend.create(request, AbortSignal.timeout(15_000))).rejects.toThrow('/nowhere/runc is not there');
    expect(await harness.leftovers(request.id)).toEqual([]);
  } finally {
    await harness.close();
  }
});

test('R-9: what the probe of a killed agent left mounted is swept', async () => {
  const harness = await openOciHarness('runc');
  try {
    const left = join(harness.stateDirectory, 'probe-left');
    for (const name of ['layer', 'upper', 'work', 'root']) await mkdir(join(left, name), { recursive: true });
    new Mounts().overlay({
      target: join(left, 'root'),
      lower: [join(left, 'layer')],
      upper: join(left, 'upper'),
      work: join(left, 'work'),
    });
    await harness.backend.sweep(new Set());
    expect(mountPoints().filter((path) => path.startsWith(left))).toEqual([]);
    await expect(stat(left)).rejects.toThrow('ENOENT');
  } finally {
    await harness.close();
  }
});

test('crun on a hybrid cgroup layout is refused in words', async () => {
  const { checkProgram } = await import('./check.ts');
  const { RuntimeProgram } = await import('./runtime-program.ts');
  const mount = (path: string, type: string, options: string): string => `30 20 0:1 / ${path} rw - ${type} ${type} ${options}`;
  const lines = [mount('/c/memory', 'cgroup', 'rw,memory'), mount('/c/unified', 'cgroup2', 'rw')];
  const hybrid = new Cgroups('/drover', parseMountTable(lines.join('\n')));
  expect(await checkProgram(new RuntimeProgram('crun', '/tmp'), hybrid)).toMatchObject({
    level: 'problem',
    message: expect.stringContaining('hybrid'),
  });
});
