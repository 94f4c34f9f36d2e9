import type { Results, Row } from './result.ts';
import { round } from './stats.ts';

/** docs/benchmarks.md, all of it: made from the results, never by hand. */
export function reportOf({ at, quick, tookSeconds, machine, sections, missing }: Results): string {
  const goals = sections.flatMap((section) => section.goals);
  const short = goals.filter(({ met }) => !met);
  const lines = [
    '# Benchmarks',
    '',
    `Made by \`npm run bench\`${quick ? ' -- --quick' : ''} on ${at.slice(0, 10)} in ${tookSeconds} s, from [bench/results/latest.json](../bench/results/latest.json); do not edit. ` +
      'Everything that is compared was measured in the same run, in turn: read the ratios. Absolute figures are this machine’s.',
    '',
    Object.entries(machine)
      .map(([name, value]) => `${name}: ${value}`)
      .join(' · '),
    '',
    '## Goals',
    '',
    '| goal | wanted | measured | |',
    '| --- | --- | --- | --- |',
    ...goals.map(({ what, goal, figure, met }) => `| ${what} | ${goal} | ${figure} | ${met ? 'met' : '**short**'} |`),
    '',
    goals.length === 0
      ? 'Nothing that was measured in this run has a goal.'
      : short.length === 0
        ? 'All that was measured in this run is met.'
        : `Still short: ${short.map(({ what, figure, goal }) => `${what}: ${figure}, and ${goal} is wanted`).join('; ')}.`,
  ];
  if (missing.length > 0) lines.push('', `Not measured: ${missing.join('; ')}.`);
  for (const { title, how, rows, absent } of sections) {
    lines.push(
      '',
      `## ${title}`,
      '',
      how,
      '',
      '| | at once | n | P50 | P90 | P99 | ratio |',
      '| --- | ---: | ---: | ---: | ---: | ---: | --- |',
    );
    lines.push(...rows.map(lineOf));
    if (absent.length > 0) lines.push('', `Not measured: ${absent.join('; ')}.`);
  }
  return `${lines.join('\n')}\n`;
}

function lineOf({ what, at, unit, summary, value, ratio }: Row): string {
  const amount = (n: number): string => `${round(n).toLocaleString('en')}${unit === '' ? '' : ` ${unit}`}`;
  const [n, ...percentiles] =
    summary === undefined
      ? ['', amount(value ?? Number.NaN), '', '']
      : [String(summary.n), amount(summary.p50), amount(summary.p90), amount(summary.p99)];
  const compared = ratio === undefined ? '' : `${ratio.value} × ${ratio.to}`;
  return `| ${what} | ${at?.toLocaleString('en') ?? ''} | ${n} | ${percentiles.join(' | ')} | ${compared} |`;
}
