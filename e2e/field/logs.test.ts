import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, TestDrover } from '../harness/index.ts';

interface LogRecord {
  readonly stream?: string;
  readonly time: string;
  readonly data?: string;
  readonly dataBase64?: string;
  readonly droppedBytes?: number;
}

describe('logs returns all retained output, and reports dropped output', () => {
  let drover: TestDrover;
  const records = async (...args: readonly string[]): Promise<readonly LogRecord[]> => {
    const { code, stdout, stderr } = await drover.run(['logs', '-o', 'json', ...args]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return stdout
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as LogRecord);
  };
  const bytesOf = (all: readonly LogRecord[]): Buffer =>
    Buffer.concat(
      all.map(({ data = '', dataBase64 }) => (dataBase64 === undefined ? Buffer.from(data) : Buffer.from(dataBase64, 'base64'))),
    );
  const lines = 1_500_000;
  const numbers = (from: number): string => Array.from({ length: lines - from + 1 }, (_, i) => `line ${from + i} of the output\n`).join('');
  const written = numbers(1).length;

  beforeAll(async () => {
    drover = await TestDrover.start(['--pool', '10.236.64.0/18']);
    await Promise.all([
      drover.begin('long', ['sh', '-c', `seq -f 'line %.0f of the output' ${lines}; echo end >&2; sleep 1d`]),
      drover.begin('bytes', ['sh', '-c', "for i in $(seq 20000); do printf '€uro'; done; printf '\\377\\376x'; sleep 1d"]),
    ]);
    await eventually('the output is complete', async () => (await drover.run(['logs', '--tail', '1', 'long'])).stderr === 'end\n');
  });
  afterAll(async () => await drover[Symbol.asyncDispose]());

  const everything = async (): Promise<void> => {
    const { code, stdout, stderr } = await drover.run(['logs', 'long']);
    const gap = /^drover: .* \((\d+) bytes\) of earlier output were dropped.*\nend\n$/.exec(stderr);
    expect(code).toBe(0);
    expect(Number(gap?.[1]) + stdout.length).toBe(written);
    // The output exceeds the size of a message.
    expect(stdout.length).toBeGreaterThan(5_000_000);
    const first = stdout.indexOf('\n') + 1;
    const from = Number(/\d+/.exec(stdout.slice(first))?.[0]);
    expect(stdout.slice(first) === numbers(from)).toBe(true);

    const [gapRecord, ...rest] = await records('long');
    expect(gapRecord).toMatchObject({ droppedBytes: Number(gap?.[1]) });
    expect(bytesOf(rest.filter(({ stream }) => stream === 'stdout')).toString() === stdout).toBe(true);

    // The selected lines are all retained, so the tail has no gap.
    const tail = await drover.run(['logs', '--tail', '1001', 'long']);
    expect(tail.stdout.split('\n').slice(0, -1)).toEqual(
      numbers(lines - 999)
        .split('\n')
        .slice(0, -1),
    );
    expect(tail.stderr).toBe('end\n');
  };

  test('of a running sandbox', everything);

  test('-o json encodes text as text, and other bytes in base64', async () => {
    const expected = Buffer.concat([Buffer.from('€uro'.repeat(20_000)), Buffer.from([0xff, 0xfe, 0x78])]);
    let replaced = 0;
    const written = async (): Promise<readonly LogRecord[] | false> => {
      const found = await records('bytes');
      replaced = found.filter(({ data }) => data?.includes('\ufffd')).length;
      return bytesOf(found).length === expected.length && found;
    };
    const all = await eventually('the output is complete', written, 30_000, () => ({ recordsWithReplacementCharacters: replaced }));
    expect(bytesOf(all).equals(expected)).toBe(true);
    expect(all.length).toBeGreaterThan(3);
    const odd = all.filter(({ data, dataBase64 }) => dataBase64 !== undefined || data?.includes('\ufffd') === true);
    expect(odd).toHaveLength(1);
  });

  test('--since leaves out older output', async () => {
    const at = new Date((await records('--tail', '1', 'long')).at(-1)?.time ?? '').toISOString();
    expect(await drover.run(['logs', '--since', at, '--tail', '1', 'long'])).toMatchObject({ code: 0, stderr: 'end\n' });
    const future = new Date(Date.parse(at) + 3_600_000).toISOString();
    expect(await drover.run(['logs', '--since', future, 'long'])).toEqual({ code: 0, stdout: '', stderr: '' });
    expect((await drover.run(['logs', '--since', '1h', '--tail', '1', 'long'])).stderr).toBe('end\n');
    const refused = await drover.run(['logs', '--since', 'yesterday', 'long']);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toMatch(/--since "yesterday" is neither a time nor a duration/);
  });

  test('of a stopped sandbox, through its host', async () => {
    await drover.stop('long', 1);
    await everything();
  });
});
