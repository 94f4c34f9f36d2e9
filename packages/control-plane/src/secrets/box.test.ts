import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { newSandboxId } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { maxSecretBytes, maxSecrets } from '@drover/spec';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { checkSecrets, SecretBox } from './index.ts';

const bytes = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);
const text = (value: Uint8Array): string => Buffer.from(value).toString();

describe('R-19: the secret box', () => {
  const box = new SecretBox(randomBytes(32));
  const id = newSandboxId();

  it('unseals every sealed value, and never seals a value twice to the same text', () => {
    const sealed = ['', 'a', 'x'.repeat(65_536)].map((value) => box.seal(id, 'TOKEN', bytes(value)));
    expect(sealed.map((one) => box.unseal(id, 'TOKEN', one).byteLength)).toEqual([0, 1, 65_536]);
    expect(text(box.unseal(id, 'TOKEN', box.seal(id, 'TOKEN', bytes('hush'))))).toBe('hush');
    expect(box.seal(id, 'TOKEN', bytes('hush'))).not.toBe(box.seal(id, 'TOKEN', bytes('hush')));
    expect(Buffer.from(box.seal(id, 'TOKEN', bytes('hush')), 'base64').includes('hush')).toBe(false);
  });

  it('refuses another sandbox, another name, another key or a changed text', () => {
    const sealed = box.seal(id, 'TOKEN', bytes('hush'));
    const changed = Buffer.from(sealed, 'base64');
    changed[14] = (changed[14] ?? 0) ^ 1;
    for (const open of [
      () => box.unseal(newSandboxId(), 'TOKEN', sealed),
      () => box.unseal(id, 'OTHER', sealed),
      () => new SecretBox(randomBytes(32)).unseal(id, 'TOKEN', sealed),
      () => box.unseal(id, 'TOKEN', changed.toString('base64')),
      () => box.unseal(id, 'TOKEN', sealed.slice(0, 8)),
      () => box.unseal(id, 'TOKEN', ''),
    ]) {
      expect(open).toThrow(/the secret (TOKEN|OTHER) cannot be decrypted/);
    }
  });

  it('computes digests that depend on the value and the key', () => {
    expect(box.digest(bytes('hush'))).toEqual(box.digest(bytes('hush')));
    expect(box.digest(bytes('hush'))).not.toEqual(box.digest(bytes('hush!')));
    expect(box.digest(bytes('hush'))).not.toEqual(new SecretBox(randomBytes(32)).digest(bytes('hush')));
  });

  describe('its key', () => {
    let directory: string;
    beforeEach(async () => {
      directory = await mkdtemp(join(tmpdir(), 'drover-box-'));
    });
    afterEach(() => rm(directory, { recursive: true }));

    it('is created at the first start, readable by its owner only, and reused', async () => {
      const path = join(directory, 'secrets.key');
      const sealed = (await SecretBox.open(path)).seal(id, 'TOKEN', bytes('hush'));
      expect((await stat(path)).mode & 0o777).toBe(0o600);
      expect(text((await SecretBox.open(path)).unseal(id, 'TOKEN', sealed))).toBe('hush');
    });

    it('I-28: fails the start if it is invalid', async () => {
      await writeFile(join(directory, 'secrets.key'), 'short');
      await expect(SecretBox.open(join(directory, 'secrets.key'))).rejects.toMatchObject({ code: 'invalid-config' });
    });
  });
});

describe('the secrets of a new sandbox', () => {
  const { ENVIRONMENT, FILE } = sandbox.SecretTarget;
  const env = (name: string): MessageInitShape<typeof sandbox.SecretMountSchema> => ({ name, target: ENVIRONMENT });
  const file = (name: string): MessageInitShape<typeof sandbox.SecretMountSchema> => ({ name, target: FILE });
  const check = (
    secrets: readonly MessageInitShape<typeof sandbox.SecretMountSchema>[],
    values: Readonly<Record<string, string | Uint8Array<ArrayBuffer>>> = Object.fromEntries(
      secrets.map(({ name = '' }) => [name, 'canary']),
    ),
    more: MessageInitShape<typeof sandbox.SandboxSpecSchema> = {},
  ): void =>
    checkSecrets(
      create(sandbox.SandboxSpecSchema, { image: 'host', secrets: [...secrets], ...more }),
      Object.entries(values).map(([name, value]) =>
        create(sandbox.SecretValueSchema, { name, value: typeof value === 'string' ? bytes(value) : value }),
      ),
    );

  it('are environment variables and files with one value each', () => {
    expect(() => check([env('TOKEN'), file('id_ed25519'), file('tls.key')])).not.toThrow();
    expect(() => check([])).not.toThrow();
    expect(() => check([file('BLOB')], { BLOB: new Uint8Array([0, 255]) })).not.toThrow();
  });

  it.each<[string, () => void, RegExp]>([
    ['a name that is invalid for a variable', () => check([env('A-B')]), /name of an environment variable/],
    ['a name that leaves the directory', () => check([file('../x')]), /name of a secret/],
    ['a hidden name', () => check([file('.x')]), /name of a secret/],
    ['a name twice', () => check([env('A'), file('A')]), /the same name/],
    ['no value', () => check([env('A')], {}), /not those that the spec names/],
    ['a value too many', () => check([], { A: 'canary' }), /not those that the spec names/],
    ['a value of another secret', () => check([env('A')], { B: 'canary' }), /not those that the spec names/],
    ['no target', () => check([{ name: 'A' }]), /has no target/],
    ['a variable that is not text', () => check([env('A')], { A: new Uint8Array([255]) }), /is not text/],
    ['a variable with a NUL', () => check([env('A')], { A: 'canary\0' }), /is not text/],
    ['too large', () => check([file('A')], { A: 'c'.repeat(maxSecretBytes + 1) }), /has 65537 bytes/],
    [
      'too large in total',
      () =>
        check(
          ['A', 'B', 'C', 'D', 'E'].map(file),
          Object.fromEntries(['A', 'B', 'C', 'D', 'E'].map((n) => [n, 'c'.repeat(maxSecretBytes)])),
        ),
      /bytes together/,
    ],
    ['too many', () => check(Array.from({ length: maxSecrets + 1 }, (_, i) => env(`A${i}`))), /there are 65 secrets/],
    ['a mount over the files', () => check([file('A')], undefined, { mounts: [{ source: '/srv', target: '/run/' }] }), /would cover/],
  ])('are refused: %s; no message contains a value', (_, act, message) => {
    expect(act).toThrow(message);
    try {
      act();
    } catch (error) {
      expect(String(error)).not.toContain('canary');
    }
  });
});
