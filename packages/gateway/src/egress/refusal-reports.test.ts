import { describe, expect, test } from 'vitest';
import { limits } from '../limits.ts';
import type { Decision } from './decisions.ts';
import { RefusalReports, type RefusalReport } from './refusal-reports.ts';

const refused = (host: string, more: Partial<Decision> = {}): Decision => ({
  sandbox: 'sb-a',
  address: '10.0.0.2',
  method: 'CONNECT',
  host,
  port: 443,
  allowed: false,
  rule: 'no rule',
  version: 1n,
  ...more,
});

describe('G-18: reports of refusals', () => {
  let now = 0;
  const opened = (): { reports: RefusalReports; seen: RefusalReport[] } => {
    now = 1_000_000;
    const seen: RefusalReport[] = [];
    const reports = new RefusalReports(() => now);
    reports.listen((report) => seen.push(report));
    return { reports, seen };
  };

  test('the first attempt is reported when it happens, repeated ones once a minute with their number', () => {
    const { reports, seen } = opened();
    for (let i = 0; i < 100; i++) reports.record(refused('a.example'));
    expect(seen).toMatchObject([{ host: 'a.example', count: 1 }]);
    now += limits.refusalQuietMs;
    reports.sweep();
    expect(seen).toMatchObject([{ count: 1 }, { count: 99, at: 1_000_000 }]);
    now += limits.refusalQuietMs;
    reports.sweep();
    expect(seen).toHaveLength(2);
    reports.record(refused('a.example'));
    expect(seen).toMatchObject([{ count: 1 }, { count: 99 }, { count: 1 }]);
  });

  test('destinations and sandboxes are counted apart; allowed attempts and unknown clients are not reported', () => {
    const { reports, seen } = opened();
    reports.record(refused('a.example'));
    reports.record(refused('a.example', { port: 22 }));
    reports.record(refused('a.example', { sandbox: 'sb-b' }));
    reports.record(refused('b.example', { allowed: true }));
    reports.record(refused('b.example', { sandbox: '' }));
    expect(seen.map(({ sandbox, host, port }) => `${sandbox} ${host}:${port}`)).toEqual([
      'sb-a a.example:443',
      'sb-a a.example:22',
      'sb-b a.example:443',
    ]);
  });

  test('a sandbox that tries many destinations makes a bounded number of reports', () => {
    const { reports, seen } = opened();
    for (let i = 0; i < 10_000; i++) reports.record(refused(`h${i}.example`));
    expect(seen).toHaveLength(limits.refusalsReportedPerSandbox);
  });

  test('without a listener the newest reports wait, and go to the next one', () => {
    now = 1_000_000;
    const reports = new RefusalReports(() => now);
    for (let i = 0; i < limits.refusalsWaiting + 5; i++) reports.record(refused('a.example', { sandbox: `sb-${i}` }));
    const seen: RefusalReport[] = [];
    reports.listen((report) => seen.push(report));
    expect(seen).toHaveLength(limits.refusalsWaiting);
    expect(seen.at(-1)?.sandbox).toBe(`sb-${limits.refusalsWaiting + 4}`);
  });
});
