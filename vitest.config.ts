import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** The e2e files that take longest, longest first: none of them is alone at the end. */
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
    // A condition is awaited for as long as a busy machine may take. `vi.waitFor` has no setting for it: scripts/vitest-setup.ts.
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
          // Before e2e, which needs the machine to itself: its instances have networks and processes of their own, and time limits.
          sequence: { groupOrder: 0 },
          // Much of their time is waiting too.
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
          // Files share nothing: each has address pools of its own, which must not overlap with another's. Three keep two CPUs busy.
          maxWorkers: 3,
          testTimeout: 120_000,
          hookTimeout: 240_000,
        },
      },
    ],
  },
});
