import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { maxSecretBytes } from '@drover/spec';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readSecrets, type SecretFlags } from './secrets.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'drover-secrets-'));
});
afterEach(() => rm(directory, { recursive: true }));

interface Given {
  readonly input?: string;
  readonly stdinTaken?: boolean;
}

async function read(flags: SecretFlags, { input = '', stdinTaken = false }: Given = {}): Promise<unknown> {
  const secrets = await readSecrets(flags, { env: { TOKEN: 'mine', EMPTY: '' }, stdin: Readable.from([Buffer.from(input)]), stdinTaken });
  return secrets.map(({ name, target, value }) => [name, target, Buffer.from(value as string).toString()]);
}

describe('R-19: --secret and --secret-file', () => {
  test("take a value from the caller's environment, a file, or stdin", async () => {
    const file = join(directory, 'key');
    await writeFile(file, 'from a file\n');
    expect(await read({ secret: ['TOKEN', 'EMPTY', `F=@${file}`, 'S=-'] }, { input: 'from stdin\r\n' })).toEqual([
      ['TOKEN', 'environment', 'mine'],
      ['EMPTY', 'environment', ''],
      // The line break that echo and editors put at the end is no part of a token; of a file it may be.
      ['F', 'environment', 'from a file'],
      ['S', 'environment', 'from stdin'],
    ]);
    expect(await read({ secretFile: [`id_ed25519=@${file}`, 'TOKEN'] })).toEqual([
      ['id_ed25519', 'file', 'from a file\n'],
      ['TOKEN', 'file', 'mine'],
    ]);
  });

  test.each<[string, SecretFlags, Given, RegExp]>([
    ['a value on the command line, without repeating it', { secret: ['TOKEN=canary'] }, {}, /^(?!.*canary).*can be read by every user/],
    ['a variable that is not set', { secret: ['OTHER'] }, {}, /you have no variable OTHER/],
    ['a file that is not there', { secret: ['A=@/nonexistent'] }, {}, /cannot be read from \/nonexistent: no such file or directory/],
    ['a bad name', { secretFile: ['../x=-'] }, {}, /cannot be the name of a secret/],
    ['stdin for two', { secret: ['A=-'], secretFile: ['B=-'] }, {}, /only one secret/],
    ["stdin that is the command's", { secret: ['A=-'] }, { stdinTaken: true }, /stdin cannot be/],
    ['what is too large', { secret: ['A=-'] }, { input: 'x'.repeat(maxSecretBytes + 1) }, /larger than 65536 bytes/],
  ])('refuse %s', async (_, flags, given, message) => {
    await expect(read(flags, given)).rejects.toMatchObject({
      message: expect.stringMatching(message) as string,
      hint: expect.any(String) as string,
    });
  });
});
