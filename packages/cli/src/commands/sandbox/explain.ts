import { api } from '@drover/protocol';
import type { Cli } from '../../cli.ts';
import { type Column, messageJson, oneLine } from '../../output/index.ts';
import { containmentText } from './details.ts';
import { age } from './show.ts';

const { PASS, FAIL } = api.TrustCheck_Verdict;

function verdictText(verdict: api.TrustCheck_Verdict): string {
  return verdict === PASS ? 'pass' : verdict === FAIL ? 'FAIL' : 'unknown';
}

const columns: readonly Column<api.TrustCheck>[] = [
  { title: 'CHECK', value: (c) => c.check },
  { title: 'VERDICT', value: (c) => verdictText(c.verdict) },
  { title: 'WHEN', value: (c) => (c.madeAt === undefined ? 'never' : `${age(c.madeAt)} ago`) },
  { title: 'MADE AT', value: (c) => c.source },
  { title: 'EVIDENCE', value: (c) => c.evidence },
];

/** Prints the latest result of every trust check. Returns 0 only if all passed: a check that was never made proves nothing. */
export default async function explain(cli: Cli, [reference]: readonly [string]): Promise<number> {
  const client = await cli.connect();
  const answer = await client.sandboxes.explain(reference, cli.signal);
  if (cli.out.json) cli.out.object(messageJson(api.ExplainSandboxResponseSchema, answer));
  else {
    for (const record of answer.sandbox?.containment?.records ?? []) cli.out.line(`contained: ${oneLine(containmentText(record))}`);
    const { message = '', hint = '' } = answer.sandbox ?? {};
    if (message !== '') cli.out.line(`state: ${oneLine(message)}`);
    if (hint !== '') cli.out.line(`hint: ${oneLine(hint)}`);
    if (answer.sandbox?.session?.state === 'failed') cli.out.line(`session lost: ${oneLine(answer.sandbox.session.lastError)}`);
    cli.out.list(answer.checks, (check) => messageJson(api.TrustCheckSchema, check), columns, 'no check has been made yet');
  }
  return answer.checks.length > 0 && answer.checks.every(({ verdict }) => verdict === PASS) ? 0 : 1;
}
