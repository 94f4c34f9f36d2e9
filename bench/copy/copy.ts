import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { mkdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { randomFillSync } from 'node:crypto';
import type { DroverClient } from '@drover/sdk';
import { repository, type TestDrover } from '../../e2e/harness/index.ts';
import type { Row, Section } from '../result.ts';
import { round, summarize } from '../stats.ts';

const pieceBytes = 1024 * 1024;

export interface CopyOptions {
  readonly quick: boolean;
  readonly drover: TestDrover;
  readonly client: DroverClient;
  /** A directory for what is made on the way. */
  readonly scratch: string;
}

/** One file into a sandbox and out of it, against tar in a pipe to the sandbox's namespaces. */
export async function measureCopy({ quick, drover, client, scratch }: CopyOptions): Promise<Section> {
  const megabytes = quick ? 128 : 1024;
  const rounds = quick ? 3 : 5;
  const directory = join(scratch, 'copy');
  await mkdir(join(directory, 'out'), { recursive: true });
  const file = join(directory, 'file');
  await pipeline(Readable.from(randomPieces(megabytes)), createWriteStream(file));
  const { id } = await client.sandboxes.create({ spec: { image: 'host', command: ['sleep', 'infinity'] } });
  try {
    await client.sandboxes.waitReady(id);
    const pid = (await readFile(join(drover.data, 'host', 'sandboxes', id, 'init.pid'), 'utf8')).trim();
    const cli = join(repository, 'drover');
    const inside = ['nsenter', '-t', pid, '-m', 'tar', '-C', '/var/tmp'];
    const ways: readonly (readonly [string, readonly string[], readonly string[]])[] = [
      ['`drover cp`, in', [], [cli, 'cp', file, `${id}:/var/tmp/file`]],
      ['`tar | nsenter tar`, in', ['tar', '-C', directory, '-c', 'file'], [...inside, '-x']],
      ['`drover cp`, out', [], [cli, 'cp', `${id}:/var/tmp/file`, join(directory, 'out', 'file')]],
      ['`nsenter tar | tar`, out', [...inside, '-c', 'file'], ['tar', '-C', join(directory, 'out'), '-x']],
    ];
    const taken = new Map(ways.map(([name]) => [name, [] as number[]]));
    for (let i = 0; i < rounds; i++) {
      for (const [name, from, to] of ways) {
        const began = performance.now();
        await run(from, to, { ...process.env, ...drover.environment });
        taken.get(name)?.push((performance.now() - began) / 1000);
        if (name.endsWith('out')) {
          if ((await stat(join(directory, 'out', 'file'))).size !== megabytes * pieceBytes)
            throw new Error(`${name}: the copy is not whole`);
          await rm(join(directory, 'out', 'file'));
        }
      }
    }
    const summaryOf = (name: string) => summarize(taken.get(name) ?? []);
    const rows: Row[] = ways.map(([name], at) => {
      const summary = summaryOf(name);
      const bare = ways[at + 1]?.[0];
      const isOurs = at % 2 === 0 && bare !== undefined;
      return { what: name, unit: 's', summary, ...(isOurs && { ratio: { to: bare, value: round(summary.p50 / summaryOf(bare).p50) } }) };
    });
    return {
      name: 'copy',
      title: `Copying a file of ${megabytes} MiB`,
      how:
        'One file of random bytes, each way in turn within every round, in one run. `drover cp` is the whole program as typed in a shell, through ' +
        'the control plane and the sandbox’s session, TLS on both; the bare way is two programs and a pipe on the host.',
      rows,
      goals: [],
      absent: [],
    };
  } finally {
    await client.sandboxes.remove(id);
    await rm(directory, { recursive: true, force: true });
  }
}

function* randomPieces(megabytes: number): Generator<Buffer> {
  for (let i = 0; i < megabytes; i++) yield randomFillSync(Buffer.allocUnsafeSlow(pieceBytes));
}

/** Runs a command, with another one's output as its input where there is one. */
async function run(from: readonly string[], to: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
  const start = (argv: readonly string[], stdin: 'ignore' | 'pipe', stdout: 'ignore' | 'pipe') =>
    spawn(argv[0] ?? '', argv.slice(1), { env, stdio: [stdin, stdout, 'inherit'] });
  const source = from.length === 0 ? undefined : start(from, 'ignore', 'pipe');
  const sink = start(to, source === undefined ? 'ignore' : 'pipe', 'ignore');
  if (source?.stdout != null && sink.stdin !== null) source.stdout.pipe(sink.stdin);
  const [code] = (await once(sink, 'exit')) as [number | null];
  if (code !== 0) throw new Error(`${to.join(' ')} ended with ${code}`);
}
