import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { parseAllowList, parsePolicy } from '@drover/spec/policy';
import { expect, test } from 'vitest';
import { PolicySchema, SandboxSpecSchema } from './generated/drover/sandbox/v1/sandbox_pb.ts';
import { policyFromWire, policyToWire } from './policy.ts';

test('G-12: a policy is the same behind the wire', () => {
  const policy = parsePolicy({
    version: 1,
    rules: [{ host: '*.example.org', ports: [22, 443], protocol: 'tcp' }, { host: '10.0.0.0/8', action: 'deny' }, { host: 'internet' }],
  });
  const bytes = toBinary(PolicySchema, policyToWire(policy));
  expect(policyFromWire({ allow: [], policy: fromBinary(PolicySchema, bytes) })).toEqual(policy);
});

test('R-16: the rules of an older client, in their short form, count beside those of the policy', () => {
  const old = create(SandboxSpecSchema, { allow: ['Example.org', '10.0.0.1:5432'] });
  expect(policyFromWire(old)).toEqual(parseAllowList(['example.org', '10.0.0.1:5432']));
  const both = create(SandboxSpecSchema, { allow: ['example.org'], policy: { version: 1, rules: [{ host: 'a.example' }] } });
  expect(policyFromWire(both)).toEqual(parseAllowList(['a.example', 'example.org']));
});

test('G-14: a policy that cannot be is refused with what is wrong', () => {
  expect(() => policyFromWire({ allow: ['http://x/'] })).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
  expect(() => policyFromWire({ allow: [], policy: create(PolicySchema, { rules: [{ host: 'a.example' }] }) })).toThrow('no version 0');
  const inspecting = create(PolicySchema, { version: 1, rules: [{ host: 'a.example', methods: ['GET'] }] });
  expect(() => policyFromWire({ allow: [], policy: inspecting })).toThrow(expect.objectContaining({ code: 'unimplemented' }));
});
