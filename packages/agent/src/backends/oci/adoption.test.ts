import { readFile, writeFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openOciHarness, type OciHarness } from '../testing/oci-harness.ts';
import { layoutOf } from './layout.ts';
import type { ContainerRecord } from './container-record.ts';

describe('R-9: a sandbox whose agent died after the runtime program had started it, and before it was recorded', () => {
  let harness: OciHarness;
  const lifetime = (): AbortSignal => AbortSignal.timeout(20_000);

  beforeAll(async () => {
    harness = await openOciHarness('runc');
  });
  afterAll(async () => {
    await harness.close();
  });

  test('is found running by the next agent, which has its exit code in the end', async () => {
    const request = await harness.requestOf(['/bin/sh', '-c', 'while [ ! -e /.drover/run/go ]; do sleep 0.05; done; exit 7']);
    await harness.backend.create(request, lifetime());
    const { record } = layoutOf(harness.stateDirectory, request.id);
    const { pid, pidStart: _start, startedAt: _startedAt, ...known } = JSON.parse(await readFile(record, 'utf8')) as ContainerRecord;
    await writeFile(record, JSON.stringify({ ...known, phase: 'creating' }));

    const next = await harness.restarted();
    expect(await next.inspect(request.id)).toMatchObject({ phase: 'running', pid, startedAt: expect.any(Number) });
    await writeFile(`${request.runDirectory}/go`, '');
    await next.waitExit(request.id, lifetime());
    expect(await next.inspect(request.id)).toMatchObject({ phase: 'ended', exitCode: 7, outOfMemory: false });
    await next.destroy(request.id);
  });
});
