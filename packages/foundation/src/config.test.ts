import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { loadConfig, parseConfig } from './config.ts';

const schema = z.strictObject({
  slots: z.int().min(1).optional(),
  labels: z.record(z.string(), z.string()).optional(),
  registries: z.strictObject({ insecure: z.array(z.string()).optional() }).optional(),
});

describe('a configuration file', () => {
  test('is YAML; an empty one is empty', () => {
    expect(parseConfig('a.yaml', 'slots: 3\nlabels:\n  zone: north\n', schema)).toEqual({ slots: 3, labels: { zone: 'north' } });
    expect(parseConfig('a.yaml', '# nothing\n', schema)).toEqual({});
  });

  test.each([
    ['a field of the wrong kind', 'slots: many\n', /^a\.yaml:1:8: slots: /],
    ['one deep inside', 'registries:\n  insecure:\n    - ok\n    - 5\n', /^a\.yaml:4:7: registries\.insecure\.1: /],
    ['an unknown field', 'slots: 3\nslotz: 4\n', /^a\.yaml:2:8: slotz: /],
    ['a field that stands twice', 'slots: 3\nslots: 4\n', /^a\.yaml:2:1: .*unique/],
    ['no YAML at all', 'slots: [3\n', /^a\.yaml:2:1: /],
    ['a list instead of fields', '- 3\n', /^a\.yaml:1:1: the file: /],
  ])('%s is refused with its line and column', (_, text, message) => {
    expect(() => parseConfig('a.yaml', text, schema)).toThrowError(
      expect.objectContaining({ code: 'invalid-config', message: expect.stringMatching(message) }),
    );
  });

  test('many aliases that grow into more are refused, not unfolded', () => {
    const bomb = `a: &a [x, x, x, x, x, x, x, x, x, x]\n${'bcdefghi'
      .split('')
      .map((name, i) => `${name}: &${name} [${`*${'abcdefghi'[i]}, `.repeat(10)}]`)
      .join('\n')}\n`;
    expect(() => parseConfig('a.yaml', bomb, z.unknown())).toThrowError(
      expect.objectContaining({ code: 'invalid-config', message: expect.stringMatching(/alias/i) }),
    );
  });

  test('a file without an end is refused', async () => {
    await expect(loadConfig('/dev/zero', schema)).rejects.toMatchObject({
      code: 'invalid-config',
      message: expect.stringContaining('has more than 1048576 bytes'),
    });
  });

  test('a file that is not there is one sentence', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'drover-config-'));
    try {
      await expect(loadConfig(join(directory, 'none.yaml'), schema)).rejects.toMatchObject({
        code: 'invalid-config',
        message: expect.stringContaining('no such file or directory'),
      });
      await writeFile(join(directory, 'some.yaml'), 'slots: 7');
      expect(await loadConfig(join(directory, 'some.yaml'), schema)).toEqual({ slots: 7 });
    } finally {
      await rm(directory, { recursive: true });
    }
  });
});
