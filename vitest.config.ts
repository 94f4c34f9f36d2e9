import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** The slowest e2e files, slowest first, so that none of them runs alone at the end. */
const slow = [
  'field/new-machine',
  'bad-input',
  'field/vanished-peers',
  'chaos',
  'kills',
  'disks',
  'cgroups',
  'field/machine.bench',
  'field/reconnect',
  'sandbox',
  'identity',
  'http2/hostile-servers',
  'http2/hostile-clients',
  'hosts',
  'attacker',
  'run',
  'field/hostile-peers.sessions',
  'images',
  'launcher',
  'secrets',
  'pack',
  'init',
  'field/disks',
  'field/programs',
  'network',
  'field/logs',
  'field/hostile-peers.http2',
  'field/endings',
  'field/retries',
  'standbys',
];

class SlowFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification): number => {
      const at = slow.findIndex((name) => moduleId.endsWith(`/${name}.test.ts`) && moduleId.includes('/e2e/'));
      return at === -1 ? slow.length : at;
    };
    return (await super.sort(files)).toSorted((a, b) => rank(a) - rank(b));
  }
}

export default defineConfig({
  resolve: { conditions: ['development'] },
  ssr: { resolve: { conditions: ['development', 'node'] } },
  test: {
    // The default wait for a condition allows for a busy machine. scripts/vitest-setup.ts sets it for `vi.waitFor`, which has no setting.
    expect: { poll: { timeout: 20_000 } },
    setupFiles: ['scripts/vitest-setup.ts'],
    sequence: { sequencer: SlowFirst },
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['packages/*/src/**/*.test.ts', 'scripts/*.test.ts'],
          pool: 'forks',
          // Unit tests run before e2e, which needs the machine for itself: its tests have networks, processes and time limits.
          sequence: { groupOrder: 0 },
          // Unit tests spend much of their time waiting.
          maxWorkers: 4,
          testTimeout: 30_000,
          hookTimeout: 60_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'e2e',
          include: ['e2e/**/*.test.ts'],
          pool: 'forks',
          sequence: { groupOrder: 1 },
          // Files share nothing: each has its own address pools, which must not overlap with another's. Three workers keep two CPUs busy.
          maxWorkers: 3,
          testTimeout: 120_000,
          hookTimeout: 240_000,
        },
      },
    ],
  },
});
