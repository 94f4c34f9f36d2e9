import { create } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { link, sandbox } from '@drover/protocol';
import { expect, test } from 'vitest';
import { startTestApi, type TestApi } from '../testing/server.ts';

async function running(api: TestApi, name: string, host: string, memoryBytes = 0n): Promise<string> {
  const { id, hostId } = await api.client.sandboxes.create({ name, spec: { image: 'host', host, resources: { memoryBytes } } });
  await api.observe(hostId as never, id, { state: sandbox.SandboxState.RUNNING });
  return id;
}

test('R-3: what sandboxes use is asked of each host, for those that run; a host that fails does not keep the others from answering', async () => {
  await using api = await startTestApi();
  const [alpha, beta] = [await api.addHost('alpha'), await api.addHost('beta')];
  const one = await running(api, 'one', 'alpha', 64n * 1024n ** 2n);
  const two = await running(api, 'two', 'alpha');
  await running(api, 'three', 'beta');
  await api.client.sandboxes.create({ name: 'four', spec: { image: 'host', host: 'alpha' } });
  const asked: (readonly string[])[] = [];
  api.hub.hosts.set(alpha, (operation) => {
    if (operation.case !== 'collectStats') throw new Error(operation.case);
    asked.push(operation.value.sandboxIds);
    const sandboxes = operation.value.sandboxIds.map((sandboxId) => ({
      sandboxId,
      cpuUsec: 5n,
      memoryBytes: 6n,
      pids: 7,
      at: { seconds: 9n },
    }));
    return { case: 'stats', value: create(link.StatsSchema, { sandboxes }) };
  });
  api.hub.hosts.set(beta, () => {
    throw new DroverError('unimplemented', 'an older agent');
  });

  const all = await api.client.sandboxes.stats();
  expect(asked).toEqual([[one, two]]);
  expect(all.sandboxes).toMatchObject([
    {
      id: one,
      name: 'one',
      hostName: 'alpha',
      cpuUsec: 5n,
      memoryBytes: 6n,
      memoryLimitBytes: 64n * 1024n ** 2n,
      pids: 7,
      at: { seconds: 9n },
    },
    { id: two, name: 'two', memoryLimitBytes: 0n },
  ]);
  expect(all.failures).toMatchObject([{ hostName: 'beta', error: { code: 'unimplemented' } }]);

  const named = await api.client.sandboxes.stats(['two', two, 'four']);
  expect(named.sandboxes.map(({ name }) => name)).toEqual(['two']);
  expect(named.failures).toEqual([]);
  await expect(api.client.sandboxes.stats(['five'])).rejects.toMatchObject({ code: 'sandbox-not-found' });
});
