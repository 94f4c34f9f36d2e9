import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseAddress, parseAllowList, parsePolicy } from '@drover/spec/policy';
import { forbiddenRange, judgeAddress, PolicyTable } from './index.ts';

const none: ReadonlySet<string> = new Set();
const policy = (...allow: string[]) => parseAllowList(allow);
const at = (port: number) => ({ port, protocol: 'tcp' }) as const;

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
    expect(judgeAddress(policy('example.org', '*.example.org'), address, at(443), none).allowed).toBe(false);
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
    expect(judgeAddress(policy(allow), parseAddress(address), at(443), hostsOwn).allowed).toBe(expected);
  });

  test('G-16: no rule opens loopback or the address of the host, and no network opens link-local', () => {
    const networks = fc.tuple(fc.ipV4(), fc.integer({ min: 0, max: 31 })).map(([address, prefix]) => `${address}/${prefix}`);
    const rules = fc.oneof(networks, fc.ipV4(), fc.constant('internet'));
    fc.assert(
      fc.property(rules, fc.integer({ min: 0, max: 2 ** 24 - 1 }), (allow, rest) => {
        const loopback = [127, rest >> 16, (rest >> 8) & 255, rest & 255].join('.');
        const linkLocal = `169.254.${(rest >> 8) & 255}.${rest & 255}`;
        const rule = policy(allow);
        expect(judgeAddress(rule, parseAddress(loopback), at(443), hostsOwn).allowed).toBe(false);
        expect(judgeAddress(rule, parseAddress('10.9.0.1'), at(443), hostsOwn).allowed).toBe(false);
        if (allow !== linkLocal) expect(judgeAddress(rule, parseAddress(linkLocal), at(443), hostsOwn).allowed).toBe(false);
      }),
    );
  });

  test('a rule that denies an address wins over every rule that opens it', () => {
    const rules = parsePolicy({
      version: 1,
      rules: [
        { host: '10.0.0.0/8' },
        { host: 'internet' },
        { host: '10.1.2.3' },
        { host: '10.1.2.0/24', action: 'deny' },
        { host: '8.8.8.8', action: 'deny' },
      ],
    });
    expect(judgeAddress(rules, parseAddress('10.1.2.3'), at(443), none)).toEqual({ allowed: false, rule: 'deny 10.1.2.0/24' });
    expect(judgeAddress(rules, parseAddress('8.8.8.8'), at(443), none).allowed).toBe(false);
    expect(judgeAddress(rules, parseAddress('10.1.3.3'), at(443), none).allowed).toBe(true);
  });

  test('an address opens for the protocol of its rule only', () => {
    const rules = parsePolicy({ version: 1, rules: [{ host: '10.1.2.3', protocol: 'http' }] });
    expect(judgeAddress(rules, parseAddress('10.1.2.3'), { port: 80, protocol: 'http' }, none).allowed).toBe(true);
    expect(judgeAddress(rules, parseAddress('10.1.2.3'), at(80), none).allowed).toBe(false);
  });

  test('opened by a rule that names the address or its network, at its port only', () => {
    const rules = policy('db.example', '10.1.2.3:5432', '192.168.0.0/16');
    expect(judgeAddress(rules, parseAddress('10.1.2.3'), at(5432), none)).toEqual({ allowed: true, rule: '10.1.2.3:5432' });
    expect(judgeAddress(rules, parseAddress('10.1.2.3'), at(443), none).allowed).toBe(false);
    expect(judgeAddress(rules, parseAddress('192.168.7.7'), at(443), none).allowed).toBe(true);
  });
});

describe('G-14: the table', () => {
  const entry = (address: string, ...allow: string[]) => ({ sandboxId: `sb-${address}`, address, policy: parseAllowList(allow) });
  const whole = (version: bigint, ...policies: ReturnType<typeof entry>[]) => ({ version, base: undefined, policies, removed: [] });

  test('is replaced as a whole, or not at all', () => {
    const table = new PolicyTable();
    table.apply(whole(1n, entry('10.0.0.2', 'a.example')));
    expect(() => table.apply(whole(2n, entry('10.0.0.3', 'b.example'), entry('not an address')))).toThrow(
      expect.objectContaining({ code: 'invalid-argument' }),
    );
    expect(table.version).toBe(1n);
    expect(table.get('10.0.0.2')?.policy.rules).toHaveLength(1);
    expect(table.get('10.0.0.3')).toBeUndefined();
  });

  test('refuses an older version, and takes a repeated one as done', () => {
    const table = new PolicyTable();
    let changes = 0;
    table.onChange(() => changes++);
    table.apply(whole(5n, entry('10.0.0.2', 'a.example')));
    table.apply(whole(5n, entry('10.0.0.2', 'a.example')));
    expect(changes).toBe(1);
    for (const version of [4n, 5n]) expect(() => table.apply(whole(version))).toThrow(expect.objectContaining({ code: 'conflict' }));
  });

  test('refuses two policies for one address', () => {
    expect(() => new PolicyTable().apply(whole(1n, entry('10.0.0.2'), entry('::ffff:10.0.0.2')))).toThrow(
      expect.objectContaining({ code: 'invalid-argument' }),
    );
  });

  test('takes a change of the table in force, and no change of another', () => {
    const table = new PolicyTable();
    table.apply(whole(1n, entry('10.0.0.2', 'a.example'), entry('10.0.0.3', 'b.example')));
    const change = { version: 2n, base: 1n, policies: [entry('10.0.0.4', 'c.example')], removed: ['::ffff:10.0.0.2'] };
    table.apply(change);
    expect([...table.snapshot().policies].map(({ address }) => address)).toEqual(['10.0.0.3', '10.0.0.4']);
    expect(() => table.apply({ ...change, version: 3n })).toThrow(expect.objectContaining({ code: 'conflict' }));
    const copy = new PolicyTable();
    copy.apply(table.snapshot());
    expect(copy.snapshot()).toEqual(table.snapshot());
  });

  test('an address that leaves and returns in one change has its new policy', () => {
    const table = new PolicyTable();
    table.apply(whole(1n, entry('10.0.0.2', 'a.example')));
    table.apply({ version: 2n, base: 1n, policies: [entry('10.0.0.2', 'b.example')], removed: ['10.0.0.2'] });
    expect(table.get('10.0.0.2')?.policy).toEqual(parseAllowList(['b.example']));
  });
});
