/**
 * Writes docs/policy.schema.json, the JSON Schema of a policy file, from the schema in packages/spec.
 * With `--check`, writes no file and fails when the schema is stale.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { policyJsonSchema } from '../packages/spec/src/policy/policy-file.ts';

const file = join(import.meta.dirname, '..', 'docs', 'policy.schema.json');
// The formatter has lists of words on one line.
const text = `${JSON.stringify(policyJsonSchema(), undefined, 2).replaceAll(/\[\s+("[^[\]]*")\s+\]/g, (_, words: string) => `[${words.replaceAll(/\s+/g, ' ')}]`)}\n`;
if (!process.argv.includes('--check')) {
  await writeFile(file, text);
} else if ((await readFile(file, 'utf8').catch(() => '')) !== text) {
  console.error('docs/policy.schema.json is stale: run npm run generate');
  process.exit(1);
}
