import fc from 'fast-check';
import { expect, test } from 'vitest';
import { absoluteImageReference, formatImageReference, parseImageReference } from './image-reference.ts';

const digest = `sha256:${'ab'.repeat(32)}`;

test.each([
  ['debian', 'docker.io/library/debian:latest'],
  ['debian:12', 'docker.io/library/debian:12'],
  ['bitnami/redis', 'docker.io/bitnami/redis:latest'],
  ['index.docker.io/library/debian', 'docker.io/library/debian:latest'],
  ['localhost/a', 'localhost/a:latest'],
  ['localhost:5000/a/b:c', 'localhost:5000/a/b:c'],
  ['[::1]:5000/a', '[::1]:5000/a:latest'],
  ['Quay.IO/a/b', 'quay.io/a/b:latest'],
  [`quay.io/a/b@${digest}`, `quay.io/a/b@${digest}`],
  [`quay.io/a/b:c@${digest}`, `quay.io/a/b:c@${digest}`],
  ['debian:12-Slim', 'docker.io/library/debian:12-Slim'],
  ['MYHOST/a', 'myhost/a:latest'],
  ['dir:/Some/Where', 'dir:/Some/Where'],
  ['host', 'host'],
  ['dir:/srv/root/', 'dir:/srv/root'],
  ['oci:/srv/layout:12', 'oci:/srv/layout:12'],
  ['oci-archive:/a.tar', 'oci-archive:/a.tar'],
  ['docker-archive:/a.tar:debian:12', 'docker-archive:/a.tar:debian:12'],
])('R-4: %s means %s', (text, canonical) => {
  expect(formatImageReference(parseImageReference(text))).toBe(canonical);
});

test.each([
  '',
  ' debian',
  'Debian',
  'dEbian:12',
  'a b',
  'a/B',
  'dir:x',
  'dir:/a\0b',
  'x@sha256:123',
  `x@md5:${'a'.repeat(32)}`,
  'quay.io:0/a',
  'https://quay.io/a',
  'quay.io/',
  'quay.io:99999/a',
  'a:',
  'a@sha256:12',
  'a//b',
  '../a',
  'a:b:c',
  'dir:relative',
  'oci:',
  'docker-archive:/a.tar:NOT VALID',
  '-a',
  `a/${'b'.repeat(600)}`,
])('R-4: %j is refused with a hint', (text) => {
  expect(() => parseImageReference(text)).toThrow(expect.objectContaining({ code: 'invalid-image-reference', hint: expect.any(String) }));
});

test('R-4: the canonical text of any reference means that reference', () => {
  const word = fc.stringMatching(/^[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?$/);
  const path = fc.array(word, { minLength: 1, maxLength: 3 }).map((parts) => parts.join('/'));
  const tag = fc.option(fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,20}$/), { nil: undefined });
  const text = fc
    .tuple(fc.constantFrom('', 'quay.io/', 'localhost:5000/', '10.0.0.1/'), path, tag, fc.boolean())
    .map(([registry, name, t, d]) => `${registry}${name}${t === undefined ? '' : `:${t}`}${d ? `@${digest}` : ''}`);
  fc.assert(
    fc.property(text, (written) => {
      const parsed = parseImageReference(written);
      expect(parseImageReference(formatImageReference(parsed))).toEqual(parsed);
    }),
  );
});

test('R-4: no text makes the parser fail otherwise', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (text) => {
      try {
        parseImageReference(text);
      } catch (error) {
        expect(error).toMatchObject({ code: 'invalid-image-reference' });
      }
    }),
  );
});

test('R-4: a relative path starts in the given directory, and what a person wrote of a registry stays as it is', () => {
  expect(absoluteImageReference('oci:layout:12', '/home/me')).toBe('oci:/home/me/layout:12');
  expect(absoluteImageReference('dir:./a/../b', '/home/me')).toBe('dir:/home/me/b');
  expect(absoluteImageReference('debian', '/home/me')).toBe('debian');
  expect(() => absoluteImageReference('oci:layout', '/home/a:b')).toThrow(
    expect.objectContaining({ hint: expect.stringContaining('colon') }),
  );
});
