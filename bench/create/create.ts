import { availableMemory } from '../machine.ts';
import type { Goal, Row, Section } from '../result.ts';
import { round, summarize } from '../stats.ts';
import type { Way } from './first-byte.ts';
import { controlPlaneShare, type Ways } from './share.ts';

/** The longest that a round of every way may be expected to take, ms: on a machine that is busier it is left out, and said to be. */
const longestRoundMs = 150_000;

/** Rounds of each way for so many at once, at most; no new round begins after `ms`, without the waits in between. */
interface Plan {
  readonly at: number;
  readonly rounds: number;
  readonly ms: number;
}
const full: readonly Plan[] = [
  { at: 1, rounds: 16, ms: 60_000 },
  { at: 10, rounds: 3, ms: 40_000 },
  { at: 50, rounds: 1, ms: 1 },
];
const quickly: readonly Plan[] = [
  { at: 1, rounds: 6, ms: 20_000 },
  { at: 10, rounds: 1, ms: 1 },
];
/** How many times as long as as many bare runc starts the creates may take, by how many there are at once. */
const goalAt: Readonly<Record<number, number>> = { 1: 2, 10: 4, 50: 5 };
/** What one running sandbox may take, bytes: resident, for the shared part is not known before. */
const bytesEach = 60 * 2 ** 20;

export interface CreateOptions {
  readonly quick: boolean;
  /** The first is the goal's own, `bare` what it is compared with. */
  readonly ways: readonly Way[];
  readonly bare: string;
  readonly absent: readonly string[];
  /** A directory for what is made on the way. */
  readonly scratch: string;
  /** Takes the section as it is so far, after each round. */
  readonly onProgress: (section: Section) => void;
  /** Waits until the machine does nothing in the background that would be counted for one way and come of another. */
  readonly quiet: () => Promise<void>;
}

const description = {
  name: 'create',
  title: 'Create → first byte of the user’s program',
  how:
    'Image in the cache; each way in turn within every round, in one run. The API’s is one SDK client: create, attach to `main`, first byte. ' +
    'A host keeps sandboxes ready ahead (standbys, one for 2 GiB of its memory); before each measurement it is waited until all of them are, so ' +
    'that what making them takes is not counted for another way; 50 at once use them up. “Without standbys” is another host beside it, which ' +
    'keeps none. `drover run` is the whole program as typed in a shell. The control plane’s share is seen from a host in memory beside the client, so ' +
    'the whole also holds the client’s and the host’s own work and the ways between the processes. The bare transports have all of these too: ' +
    'in turn with it, the same messages over a Connect call whose handler writes to a bare grpc-js stream, with mutual TLS, and no store and no ' +
    'logic. The goal is about what the control plane adds, and so is compared with the difference of the two. The host offers more CPUs than it has, ' +
    'so that none of them waits for room.',
};

/** R-21: create to the first byte of the user's program, each way in turn within every round. */
export async function measureCreate({ quick, ways, bare, absent: given, scratch, onProgress, quiet }: CreateOptions): Promise<Section> {
  const absent = [...given];
  const rows: Row[] = [];
  const goals: Goal[] = [];
  const section: Section = { ...description, rows, goals, absent };
  let lastRoundMs = 0;
  let lastAt = 1;
  // Not counted: files come into the cache, code is compiled, pools fill.
  for (const way of ways) {
    for (let i = 0; i < way.warmUps; i++) {
      await quiet();
      await (await way.start()).tidy();
    }
  }
  for (const { at, rounds, ms: budget } of quick ? quickly : full) {
    if (availableMemory() < at * bytesEach) {
      absent.push(`${at} at once: not enough memory`);
      continue;
    }
    const expectedMs = (lastRoundMs * at) / lastAt;
    if (expectedMs > longestRoundMs) {
      absent.push(`${at} at once: the machine is too busy, one round would have taken ${Math.round(expectedMs / 1000)} s`);
      continue;
    }
    const taken = new Map(ways.map((way) => [way.name, [] as number[]]));
    let spentMs = 0;
    for (let i = 0; i < rounds && (i === 0 || spentMs < budget); i++) {
      lastRoundMs = 0;
      for (const way of ways) {
        await quiet();
        const began = performance.now();
        const started = await Promise.all(Array.from({ length: at }, async () => await way.start()));
        taken.get(way.name)?.push(...started.map(({ ms }) => ms));
        await Promise.all(started.map(async ({ tidy }) => await tidy()));
        lastRoundMs += performance.now() - began;
      }
      spentMs += lastRoundMs;
      lastAt = at;
      onProgress({ ...section, rows: [...rows, ...rowsOf(taken, at, bare)] });
    }
    rows.push(...rowsOf(taken, at, bare));
    const base = summarize(taken.get(bare) ?? []);
    const [first] = ways;
    const goal = goalAt[at];
    if (goal !== undefined && first !== undefined) {
      const ratio = summarize(taken.get(first.name) ?? []).p50 / base.p50;
      goals.push({
        what: `create → first byte through the API, ${at === 1 ? 'one at a time' : `${at} at once`}, against bare runc (P50)`,
        goal: `≤ ${goal} times`,
        figure: `${round(ratio)} times`,
        met: ratio <= goal,
      });
    }
  }
  const share = await controlPlaneShare(quick ? 40 : 150, scratch);
  const { whole, bare: transports } = share;
  for (const [what, ours, theirs] of [
    ['request sent → command at the host', whole.toCommand, transports.toCommand],
    ['host’s report → tunnel asked for at the host', whole.toTunnel, transports.toTunnel],
  ] as const) {
    const ratio = { to: 'bare transports', value: round(ours.p50 / theirs.p50) };
    rows.push(
      { what: `control plane: ${what}`, at: 1, unit: 'ms', summary: ours, ratio },
      { what: `bare transports: ${what}`, at: 1, unit: 'ms', summary: theirs },
    );
  }
  const sum = (ways: Ways): number => ways.toCommand.p50 + ways.toTunnel.p50;
  const own = round(sum(whole) - sum(transports));
  goals.push({
    what: 'control plane’s share of a create (P50, both parts, without the transports)',
    goal: '≤ 5 ms',
    figure: `${own} ms (whole ${round(sum(whole))} ms, bare transports ${round(sum(transports))} ms)`,
    met: own <= 5,
  });
  return section;
}

/** A row for each way that was taken for so many at once, compared with the bare one. */
function rowsOf(taken: ReadonlyMap<string, readonly number[]>, at: number, bare: string): readonly Row[] {
  const base = summarize(taken.get(bare) ?? []);
  return [...taken].map(([what, values]) => {
    const summary = summarize(values);
    return { what, at, unit: 'ms', summary, ratio: { to: bare, value: round(summary.p50 / base.p50) } };
  });
}
