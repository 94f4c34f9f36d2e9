import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { parseAllowList, parsePolicy, parseSandboxPolicy } from '@drover/spec/policy';
import { parseSetup } from '@drover/spec/setup';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { PolicySchema, SandboxSpecSchema, SetupSchema } from './generated/drover/sandbox/v1/sandbox_pb.ts';
import { policyToWire, setupToWire } from './spec.ts';

test('G-12: a policy is unchanged by the wire format', () => {
  const policy = parsePolicy({
    version: 1,
    rules: [{ host: '*.example.org', ports: [22, 443], protocol: 'tcp' }, { host: '10.0.0.0/8', action: 'deny' }, { host: 'internet' }],
  });
  const bytes = toBinary(PolicySchema, policyToWire(policy));
  expect(parseSandboxPolicy({ allow: [], policy: fromBinary(PolicySchema, bytes) })).toEqual(policy);
});

test('R-16: the short rules of an older client apply in addition to those of the policy', () => {
  const old = create(SandboxSpecSchema, { allow: ['Example.org', '10.0.0.1:5432'] });
  expect(parseSandboxPolicy(old)).toEqual(parseAllowList(['example.org', '10.0.0.1:5432']));
  const both = create(SandboxSpecSchema, { allow: ['example.org'], policy: { version: 1, rules: [{ host: 'a.example' }] } });
  expect(parseSandboxPolicy(both)).toEqual(parseAllowList(['a.example', 'example.org']));
});

test('G-14: an invalid policy is refused with the reason', () => {
  expect(() => parseSandboxPolicy({ allow: ['http://x/'] })).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
  expect(() => parseSandboxPolicy({ allow: [], policy: create(PolicySchema, { rules: [{ host: 'a.example' }] }) })).toThrow('no version 0');
  const inspecting = create(PolicySchema, { version: 1, rules: [{ host: 'a.example', methods: ['GET'] }] });
  expect(() => parseSandboxPolicy({ allow: [], policy: inspecting })).toThrow(expect.objectContaining({ code: 'unimplemented' }));
});

test('I-29: a setup is unchanged by the wire format', () => {
  const word = fc.stringMatching(/^[a-z]{1,8}$/);
  const path = fc.tuple(fc.constantFrom('', '/srv/', '~/'), word, word).map(([root, a, b]) => `${root}${a}//${b}`);
  const source = fc.oneof(
    fc.record({ case: fc.constant('content' as const), value: fc.string() }),
    fc.constant({ case: 'secret' as const, value: 'TOKEN' }),
  );
  const setups = fc.record(
    {
      files: fc.uniqueArray(fc.record({ path, source, mode: fc.integer({ min: 0, max: 0o777 }) }), {
        selector: (file) => file.path.replace('~/', ''),
        maxLength: 4,
      }),
      git: fc.record({
        config: fc.dictionary(fc.constantFrom('user.name', 'url.https://a/.insteadOf'), fc.string()),
        clones: fc.array(fc.record({ url: fc.constant('https://example.org/a.git'), path, ref: fc.constantFrom('', 'main') }), {
          maxLength: 1,
        }),
      }),
      ssh: fc.record({
        knownHosts: fc.constantFrom([], ['example.org ssh-ed25519 AAAA']),
        keys: fc.constantFrom([], ['TOKEN']),
        config: word,
      }),
      postInit: word,
    },
    { requiredKeys: [] },
  );
  const secrets = new Set(['TOKEN']);
  fc.assert(
    fc.property(setups, (input) => {
      const setup = parseSetup(input, secrets);
      const sent = fromBinary(SetupSchema, toBinary(SetupSchema, setupToWire(setup)));
      expect(parseSetup(sent, secrets)).toEqual(setup);
    }),
  );
});
