import { describe, expect, it } from 'vitest';
import { checkAllow } from './parse.ts';

describe('R-16: a destination is what the gateway reads', () => {
  it.each([
    'example.com',
    'Example.com.',
    '*.example.com:8443',
    'under_score.example',
    'bücher.example',
    '10.1.2.3',
    '10.1.2.3:80',
    '10.0.0.0/8',
    '10.0.0.0/8:443',
    '2001:db8::1',
    'fd00::/8',
    '[2001:db8::1]',
    '[fd00::/8]:443',
  ])('%s', (text) => expect(() => checkAllow(text)).not.toThrow());

  it.each([
    '',
    '*',
    'a.*.example.com',
    'https://example.com',
    'example.com/x',
    'bücher.example/x',
    'user@example.com',
    'example.com:',
    'example.com:0',
    'example.com:99999',
    'example.com:080',
    '127.1',
    '0x7f.1',
    '10.0.0.0/33',
    '10.0.0.0/8/8',
    'fd00::/129',
    'fe80::1%eth0',
    '*.10.0.0.1',
    '[10.0.0.1]',
    '[example.com]:80',
    'a b',
    `${'a'.repeat(64)}.example`,
  ])('not %s', (text) => expect(() => checkAllow(text)).toThrow(expect.objectContaining({ code: 'invalid-argument' })));
});
