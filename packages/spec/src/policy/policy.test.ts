import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { maxPolicyRules } from '../limits.ts';
import {
  evaluate,
  formatPolicy,
  formatRule,
  mergePolicies,
  parseAllowList,
  parseAuthority,
  parseHost,
  parsePolicy,
  parseRule,
  parseShortRule,
  requireEnforced,
  type PolicyDocument,
  type RuleDocument,
} from './index.ts';
import { parsePolicyFile, policyJsonSchema } from './policy-file.ts';

const allows = (allow: string, host: string, port: number) =>
  evaluate(parseAllowList([allow]), { host: parseHost(host), port, protocol: 'tcp' }).allowed;

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
    ['under_score.example', 'under_score.example', 443, true],
    ['*.example.com:8443', 'a.example.com', 8443, true],
    ['[2001:db8::1]', '2001:db8::1', 80, true],
    ['[fd00::/8]:443', 'fd12::1', 443, true],
    ['fd00::/8', 'fd12::1', 443, true],
  ])('G-12: %s and %s:%i: %s', (allow, host, port, expected) => {
    expect(allows(allow, host, port)).toBe(expected);
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
    'a.*.example.com',
    'bücher.example/x',
    'example.com:080',
    'example.com:99999',
    '0x7f.1',
    '10.0.0.0/8/8',
    '10.0.0.0/',
    'fd00::/129',
    'fe80::1%eth0',
    '[10.0.0.1]',
    '[example.com]:80',
    `${'a'.repeat(64)}.example`,
  ])('G-14: %j is refused, with what to write instead', (text) => {
    expect(() => parseShortRule(text)).toThrow(
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

const hosts = fc.oneof(
  fc.stringMatching(/^(\*\.)?[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{2,5}){1,2}$/),
  fc.tuple(fc.ipV4(), fc.integer({ min: 0, max: 32 })).map(([address, prefix]) => `${address}/${prefix}`),
  fc.ipV6(),
  fc.constant('internet'),
);
const ports = fc.array(fc.integer({ min: 1, max: 65_535 }), { maxLength: 4 });
/** Rules of which more than one often covers a request. */
const rules: fc.Arbitrary<RuleDocument> = fc.record(
  {
    host: fc.oneof(hosts, fc.constantFrom('a.example', '*.example', 'internet')),
    ports: fc.oneof(ports, fc.constant([443])),
    protocol: fc.constantFrom('https', 'http', 'tls', 'tcp', 'git'),
    methods: fc.subarray(['GET', 'post', 'M-SEARCH']),
    paths: fc.subarray(['/v1/**', '/', '/a*b']),
    action: fc.constantFrom('allow', 'deny', 'observe'),
    credentials: fc.subarray(['TOKEN', 'other-token']),
  },
  { requiredKeys: ['host'] },
);
const documents: fc.Arbitrary<PolicyDocument> = fc.record({
  version: fc.constant(1),
  extends: fc.subarray(['npm', 'debian', 'crates-io']),
  rules: fc.array(rules, { maxLength: 8 }),
});
const request = { host: parseHost('a.example'), port: 443, protocol: 'tcp' } as const;

describe('G-12: a policy', () => {
  test('is read back as it was written, and a written policy is written the same again', () => {
    fc.assert(
      fc.property(documents, (document) => {
        const policy = parsePolicy(document);
        expect(parsePolicy(formatPolicy(policy))).toEqual(policy);
        expect(formatPolicy(parsePolicy(formatPolicy(policy)))).toEqual(formatPolicy(policy));
      }),
    );
  });

  test('does not depend on the order or the repetition of its rules', () => {
    fc.assert(
      fc.property(documents, ({ rules: list = [], ...rest }) => {
        const policy = parsePolicy({ ...rest, rules: list });
        expect(parsePolicy({ ...rest, rules: [...list, ...list].toReversed() })).toEqual(policy);
        expect(mergePolicies(policy, policy)).toEqual(policy);
      }),
    );
  });

  test('two rules with the same text are the same rule', () => {
    fc.assert(
      fc.property(rules, rules, (one, other) => {
        const [a, b] = [parseRule(one), parseRule(other)];
        expect(a.text === b.text).toBe(JSON.stringify(formatRule(a)) === JSON.stringify(formatRule(b)));
      }),
    );
  });

  test('deny wins over allow, allow over observe, and what no rule covers is denied', () => {
    fc.assert(
      fc.property(documents, ({ rules: list = [] }) => {
        const policy = parsePolicy({ version: 1, rules: list });
        const covering = policy.rules.filter((rule) => evaluate({ extends: [], rules: [rule] }, request).rule !== undefined);
        const verdict = evaluate(policy, request);
        const actions = new Set(covering.map(({ action }) => action));
        expect(verdict.allowed).toBe(!actions.has('deny') && actions.size > 0);
        expect(verdict.rule?.action).toBe((['deny', 'allow', 'observe'] as const).find((action) => actions.has(action)));
      }),
    );
  });

  test('a rule that is not its own protocol does not decide', () => {
    const policy = parsePolicy({ version: 1, rules: [{ host: 'a.example', protocol: 'http' }] });
    expect(evaluate(policy, { ...request, protocol: 'http' })).toMatchObject({ allowed: true, rule: { text: 'a.example http' } });
    expect(evaluate(policy, request)).toEqual({ allowed: false, rule: undefined });
  });

  test('a network stands for all of its addresses, however it is written', () => {
    expect(parseShortRule('10.1.2.3/8')).toEqual(parseShortRule('10.0.0.0/8'));
    expect(parseShortRule('fd12:3456::1/8').text).toBe('fd00::/8');
    expect(parseShortRule('10.1.2.3/32').text).toBe('10.1.2.3');
  });

  test('--allow is the short form of a rule', () => {
    fc.assert(
      fc.property(hosts, fc.option(fc.integer({ min: 1, max: 65_535 })), (host, port) => {
        const rule = parseRule({ host, ...(port !== null && { ports: [port] }) });
        const text = port === null ? host : host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
        expect(parseShortRule(text)).toEqual(rule);
        expect(parseShortRule(rule.text)).toEqual(rule);
      }),
    );
  });

  const wrong: readonly (readonly [string, RuleDocument, RegExp])[] = [
    ['a host', { host: 'a b' }, /"a b"/],
    ['a port', { host: 'a.example', ports: [443, 0] }, /"0" is not a port/],
    ['a protocol', { host: 'a.example', protocol: 'ftp' }, /no protocol "ftp"/],
    ['a method', { host: 'a.example', methods: ['G E T'] }, /"G E T" is not a method/],
    ['a path', { host: 'a.example', paths: ['v1'] }, /"v1" is not a path/],
    ['an action', { host: 'a.example', action: 'permit' }, /no action "permit"/],
    ['a credential', { host: 'a.example', credentials: ['a/b'] }, /"a\/b" is not a credential/],
    ['too many ports', { host: 'a.example', ports: Array.from({ length: 65 }, (_, i) => i + 1) }, /65 ports/],
  ];
  test.each(wrong)('refuses %s that is none', (_, rule, message) => {
    expect(() => parseRule(rule)).toThrow(
      expect.objectContaining({
        code: 'invalid-argument',
        message: expect.stringMatching(message) as string,
        hint: expect.any(String) as string,
      }),
    );
  });

  test('refuses another version, too many rules and a set without a name', () => {
    expect(() => parsePolicy({ version: 2 })).toThrow('no version 2');
    const many = Array.from({ length: maxPolicyRules + 1 }, (_, i) => `h${i}.example`);
    expect(() => parseAllowList(many)).toThrow(`${maxPolicyRules + 1} rules`);
    expect(() => parsePolicy({ version: 1, extends: ['No Set'] })).toThrow('"No Set" is not a set');
  });

  test.each<[RuleDocument, string]>([
    [{ host: 'a.example', methods: ['GET'] }, 'names methods'],
    [{ host: 'a.example', paths: ['/v1'] }, 'names paths'],
    [{ host: 'a.example', credentials: ['TOKEN'] }, 'adds credentials'],
    [{ host: 'a.example', action: 'observe' }, 'asks to observe'],
    [{ host: 'a.example', protocol: 'https' }, 'is for https alone'],
    [{ host: 'a.example', protocol: 'tls' }, 'is for tls alone'],
    [{ host: 'a.example', protocol: 'git' }, 'is for git alone'],
  ])('no rule is accepted and ignored: %j', (rule, message) => {
    expect(() => requireEnforced(parsePolicy({ version: 1, rules: [rule] }))).toThrow(
      expect.objectContaining({ code: 'unimplemented', message: expect.stringContaining(message) as string }),
    );
  });

  test('a set is not ignored either, and what the gateway enforces passes', () => {
    expect(() => requireEnforced(parsePolicy({ version: 1, extends: ['npm'] }))).toThrow('extends npm');
    const enforced = parsePolicy({
      version: 1,
      rules: [
        { host: 'a.example', action: 'deny' },
        { host: '*.example', protocol: 'http' },
        { host: 'internet', protocol: 'tcp' },
      ],
    });
    expect(requireEnforced(enforced)).toBe(enforced);
  });
});

describe('G-14: a policy file', () => {
  test('is read into a policy', () => {
    const text = 'version: 1\nrules:\n  - host: api.example.com\n    ports: [443]\n  - {host: "*.evil.example", action: deny}\n';
    expect(parsePolicyFile('policy.yaml', text).rules.map((rule) => rule.text)).toEqual(['api.example.com:443', 'deny *.evil.example']);
  });

  test.each([
    ['version: 2\n', /^p\.yaml:1:10: version: /],
    ['version: 1\nrules:\n  - host: a b\n', /^p\.yaml:3:5: rules\.0: "a b"/],
    ['version: 1\nrules:\n  - host: a.example\n    port: 1\n', /^p\.yaml:4:11: rules\.0\.port: /],
    ['version: 1\nrules:\n  - host: a.example\n    ports: [70000]\n', /^p\.yaml:4:13: rules\.0\.ports\.0: /],
  ])('a mistake in %j is reported with line and column', (text, message) => {
    expect(() => parsePolicyFile('p.yaml', text)).toThrow(
      expect.objectContaining({ code: 'invalid-config', message: expect.stringMatching(message) as string }),
    );
  });

  test('its JSON Schema names every field of a rule', () => {
    expect(policyJsonSchema()).toMatchObject({
      $schema: expect.stringContaining('json-schema.org') as string,
      required: ['version'],
      additionalProperties: false,
      properties: {
        rules: {
          items: {
            required: ['host'],
            properties: { host: {}, ports: {}, protocol: {}, methods: {}, paths: {}, action: {}, credentials: {} },
          },
        },
      },
    });
  });
});
