import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  compilePolicy,
  forbiddenRange,
  judgeAddress,
  judgeHost,
  parseAddress,
  parseAuthority,
  parseHost,
  parsePattern,
  PolicyTable,
} from './index.ts';

const none: ReadonlySet<string> = new Set();
const policy = (...allow: string[]) => compilePolicy('sb-x', allow, 1n);
const allows = (allow: string, host: string, port: number) => judgeHost(policy(allow), parseHost(host), port).allowed;

describe('patterns', () => {
  test.each([
    ['example.org', 'example.org', 443, true],
    ['example.org', 'EXAMPLE.org.', 80, true],
    ['example.org', 'example.org', 22, false],
    ['example.org:22', 'example.org', 22, true],
    ['example.org:22', 'example.org', 443, false],
    ['example.org', 'www.example.org', 443, false],
    ['example.org', 'example.org.evil.test', 443, false],
    ['*.example.org', 'a.example.org', 443, true],
    ['*.example.org', 'a.b.example.org', 443, true],
    ['*.example.org', 'example.org', 443, false],
    ['*.example.org', 'evilexample.org', 443, false],
    ['Bücher.example', 'xn--bcher-kva.example', 443, true],
    ['93.184.215.14', '93.184.215.14', 443, true],
    ['10.0.0.0/8:8080', '10.1.2.3', 8080, true],
    ['10.0.0.0/8:8080', '11.1.2.3', 8080, false],
    ['10.0.0.0/8', 'ten.example', 80, false],
    ['[2606:4700::1]:8443', '[2606:4700:0:0::1]', 8443, true],
    ['2606:4700::/32', '[2606:4700::9]', 443, true],
    ['127.0.0.1:80', '[::ffff:127.0.0.1]', 80, true],
  ])('G-12: %s and %s:%i: %s', (allow, host, port, expected) => {
    expect(allows(allow, host, port)).toBe(expected);
  });

  test.each([
    '',
    '*',
    '*.',
    'http://example.org',
    'example.org/x',
    'a b',
    'example.org:0',
    'example.org:70000',
    'example.org:',
    '*.10.0.0.1',
    '10.0.0.0/33',
    '[10.0.0.1]:80',
    'a*b.org',
    'user@example.org',
    '-a.org',
    '127.1',
  ])('G-14: %j is refused, with what to write instead', (text) => {
    expect(() => parsePattern(text)).toThrow(
      expect.objectContaining({ code: 'invalid-argument', hint: expect.stringContaining('example.org') }),
    );
  });
});

describe('hosts from the wire', () => {
  test.each([
    '127.1',
    '0x7f.0.0.1',
    '2130706433',
    '017700000001',
    '1.2.3.4.',
    'a..b',
    '.',
    'a\0.org',
    'a%00.org',
    'exämple.org',
    'a_b c',
    `${'a'.repeat(64)}.org`,
    'fe80::1%eth0',
    '[::1',
    '::1]',
    '[127.0.0.1]',
    '1.2.3.256',
  ])('G-17: %j is refused', (text) => {
    // `1.2.3.4.` is the one of these that has a meaning: the address.
    if (text === '1.2.3.4.') expect(parseHost(text)).toMatchObject({ kind: 'address' });
    else expect(() => parseHost(text)).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
  });

  test('G-17: whatever the text, the parser gives a canonical host or refuses', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        let host;
        try {
          host = parseHost(text);
        } catch (error) {
          expect(error).toMatchObject({ code: 'invalid-argument' });
          return;
        }
        if (host.kind === 'name') expect(parseHost(host.name)).toEqual(host);
      }),
    );
  });

  test.each(['example.org', 'example.org:', 'a:1:2', ':80', '::1:80', 'example.org:+80', 'example.org:080'])(
    'G-17: the authority %j is refused',
    (text) => {
      expect(() => parseAuthority(text)).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
    },
  );
});

describe('G-16: forbidden addresses', () => {
  test.each([
    '127.0.0.1',
    '127.255.0.1',
    '0.0.0.0',
    '10.0.0.1',
    '172.16.0.1',
    '192.168.1.1',
    '100.64.0.1',
    '169.254.169.254',
    '169.254.0.1',
    '192.0.2.1',
    '198.18.0.1',
    '224.0.0.1',
    '240.0.0.1',
    '255.255.255.255',
    '::',
    '::1',
    'fe80::1',
    'fc00::1',
    'fd00::1',
    'ff02::1',
    '2001:db8::1',
    'fec0::1',
    '::ffff:10.0.0.1',
    '::ffff:127.0.0.1',
    '::10.0.0.1',
    '64:ff9b::10.0.0.1',
    '64:ff9b::169.254.169.254',
    '64:ff9b:1::8.8.8.8',
    '2002:0a00:0001::',
    '2001:0:1::1',
    '100::1',
  ])('%s', (text) => {
    const address = parseAddress(text);
    expect(forbiddenRange(address, none)).toBeDefined();
    expect(judgeAddress(policy('example.org', '*.example.org'), address, 443, none).allowed).toBe(false);
  });

  test.each(['8.8.8.8', '93.184.215.14', '2606:4700::1111', '64:ff9b::8.8.8.8', '::ffff:8.8.8.8'])('%s is an ordinary address', (text) => {
    expect(forbiddenRange(parseAddress(text), none)).toBeUndefined();
  });

  test("the host's own addresses are forbidden, public or not, mapped or not", () => {
    const own = new Set(['203.0.114.9', '2606:4700::9']);
    for (const text of ['203.0.114.9', '::ffff:203.0.114.9', '64:ff9b::203.0.114.9', '2606:4700::9']) {
      expect(forbiddenRange(parseAddress(text), own)?.range, text).toContain('own address');
    }
  });

  const hostsOwn = new Set(['10.9.0.1', '203.0.114.9']);
  test.each([
    ['0.0.0.0/0', '8.8.8.8', true],
    ['0.0.0.0/0', '169.254.169.254', false],
    ['0.0.0.0/0', '127.0.0.1', false],
    ['0.0.0.0/0', '10.1.2.3', false],
    ['0.0.0.0/0', '203.0.114.9', false],
    ['::/0', '2606:4700::1111', true],
    ['::/0', '::1', false],
    ['::/0', 'fe80::1', false],
    ['::/0', 'fd00:ec2::254', false],
    ['::/0', 'fd12::1', false],
    ['0.0.0.0/0', '168.63.129.16', false],
    ['168.63.129.0/24', '168.63.129.16', false],
    ['168.63.129.16', '168.63.129.16', true],
    ['169.254.0.0/16', '169.254.169.254', false],
    ['169.254.0.0/16', '169.254.1.1', false],
    ['169.254.169.254', '169.254.169.254', true],
    ['fe80::/10', 'fe80::1', false],
    ['127.0.0.0/8', '127.0.0.1', false],
    ['127.0.0.1', '127.0.0.1', false],
    ['0.0.0.0', '0.0.0.0', false],
    ['[::1]:443', '::1', false],
    ['10.0.0.0/8', '10.1.2.3', true],
    ['10.0.0.0/8', '10.9.0.1', false],
    ['10.9.0.1', '10.9.0.1', false],
    ['10.9.0.1', '::ffff:10.9.0.1', false],
    ['203.0.114.9', '203.0.114.9', false],
    ['172.0.0.0/8', '172.16.0.1', false],
    ['172.16.0.0/12', '172.16.0.1', true],
    ['8.0.0.0/6', '10.1.2.3', false],
    ['fc00::/7', 'fd12::1', true],
    ['100.64.0.0/10', '100.64.1.1', true],
    ['100.64.0.0/10', '100.100.100.200', false],
    ['224.0.0.0/4', '224.0.0.1', false],
    ['64:ff9b::/96', '64:ff9b::169.254.169.254', false],
    ['internet', '8.8.8.8', true],
    ['internet', '2606:4700::1111', true],
    ['internet', '10.1.2.3', false],
    ['internet', '169.254.169.254', false],
    ['internet', '127.0.0.1', false],
    ['internet', '203.0.114.9', false],
  ])('G-16: --allow %s and the address %s: %s', (allow, address, expected) => {
    expect(judgeAddress(policy(allow), parseAddress(address), 443, hostsOwn).allowed).toBe(expected);
  });

  test('G-16: no rule opens loopback or the address of the host, and no network opens link-local', () => {
    const networks = fc.tuple(fc.ipV4(), fc.integer({ min: 0, max: 31 })).map(([address, prefix]) => `${address}/${prefix}`);
    const rules = fc.oneof(networks, fc.ipV4(), fc.constant('internet'));
    fc.assert(
      fc.property(rules, fc.integer({ min: 0, max: 2 ** 24 - 1 }), (allow, rest) => {
        const loopback = [127, rest >> 16, (rest >> 8) & 255, rest & 255].join('.');
        const linkLocal = `169.254.${(rest >> 8) & 255}.${rest & 255}`;
        const rule = policy(allow);
        expect(judgeAddress(rule, parseAddress(loopback), 443, hostsOwn).allowed).toBe(false);
        expect(judgeAddress(rule, parseAddress('10.9.0.1'), 443, hostsOwn).allowed).toBe(false);
        if (allow !== linkLocal) expect(judgeAddress(rule, parseAddress(linkLocal), 443, hostsOwn).allowed).toBe(false);
      }),
    );
  });

  test.each([
    ['internet', 'example.org', 443, true],
    ['internet', '192.0.2.7', 80, true],
    ['internet', 'example.org', 22, false],
    ['internet:22', 'example.org', 22, true],
    ['internet:22', 'example.org', 443, false],
  ])('%s covers %s at port %i: %s, and its addresses are judged after', (allow, host, port, expected) => {
    expect(allows(allow, host, port)).toBe(expected);
  });

  test('opened by a rule that names the address or its network, at its port only', () => {
    const rules = policy('db.example', '10.1.2.3:5432', '192.168.0.0/16');
    expect(judgeAddress(rules, parseAddress('10.1.2.3'), 5432, none)).toEqual({ allowed: true, rule: '10.1.2.3:5432' });
    expect(judgeAddress(rules, parseAddress('10.1.2.3'), 443, none).allowed).toBe(false);
    expect(judgeAddress(rules, parseAddress('192.168.7.7'), 443, none).allowed).toBe(true);
  });
});

describe('G-14: the table', () => {
  const entry = (address: string, ...allow: string[]) => ({ sandboxId: `sb-${address}`, address, allow });

  test('is replaced as a whole, or not at all', () => {
    const table = new PolicyTable();
    table.replace(1n, [entry('10.0.0.2', 'a.example')]);
    expect(() => table.replace(2n, [entry('10.0.0.3', 'b.example'), entry('10.0.0.4', 'not a host')])).toThrow(
      expect.objectContaining({ code: 'invalid-argument' }),
    );
    expect(table.version).toBe(1n);
    expect(table.get('10.0.0.2')?.patterns).toHaveLength(1);
    expect(table.get('10.0.0.3')).toBeUndefined();
  });

  test('refuses an older version, and takes a repeated one as done', () => {
    const table = new PolicyTable();
    let changes = 0;
    table.onChange(() => changes++);
    table.replace(5n, [entry('10.0.0.2', 'a.example')]);
    table.replace(5n, [entry('10.0.0.2', 'a.example')]);
    expect(changes).toBe(1);
    for (const version of [4n, 5n]) expect(() => table.replace(version, [])).toThrow(expect.objectContaining({ code: 'conflict' }));
  });

  test('refuses two policies for one address', () => {
    expect(() => new PolicyTable().replace(1n, [entry('10.0.0.2'), entry('::ffff:10.0.0.2')])).toThrow(
      expect.objectContaining({ code: 'invalid-argument' }),
    );
  });
});
