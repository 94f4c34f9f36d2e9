import { DroverError } from '@drover/foundation';
import { parseConfig } from '@drover/foundation/config';
import { z } from 'zod';
import { maxPolicyRules, maxRuleEntries } from '../limits.ts';
import { parsePolicy, policyVersion, type Policy, type PolicyDocument } from './policy.ts';
import { actions, parseRule, protocols, type RuleDocument } from './rule.ts';

/** The shape of a rule; `parseRule` reads what its texts mean. */
const rule = z
  .strictObject({
    host: z.string().meta({ description: 'A host, *.host, an address, a network such as 10.0.0.0/8, or internet' }),
    ports: z.array(z.int().min(1).max(65_535)).max(maxRuleEntries).optional().meta({ description: 'Default: 80 and 443' }),
    protocol: z.enum(protocols).optional().meta({ description: 'Default: every protocol' }),
    methods: z.array(z.string()).max(maxRuleEntries).optional(),
    paths: z.array(z.string()).max(maxRuleEntries).optional().meta({ description: 'Globs, such as /v1/**' }),
    action: z.enum(actions).default('allow').meta({ description: 'Deny wins over allow, allow over observe (allow and report)' }),
    credentials: z.array(z.string()).max(maxRuleEntries).optional().meta({ description: 'Secrets that the gateway adds to requests' }),
  })
  .check((context) => {
    try {
      parseRule(context.value);
    } catch (error) {
      context.issues.push({ code: 'custom', message: DroverError.from(error).message, input: context.value });
    }
  }) satisfies z.ZodType<RuleDocument>;

const policy = z.strictObject({
  version: z.literal(policyVersion),
  extends: z.array(z.string()).max(maxPolicyRules).optional().meta({ description: 'Shared sets of rules' }),
  rules: z.array(rule).max(maxPolicyRules).optional(),
}) satisfies z.ZodType<PolicyDocument>;

/** @throws {DroverError} invalid-config with file, line, column and field of the first mistake; invalid-argument */
export function parsePolicyFile(path: string, text: string): Policy {
  return parsePolicy(parseConfig(path, text, policy));
}

/** The JSON Schema of a policy file. */
export function policyJsonSchema(): object {
  return { ...z.toJSONSchema(policy, { io: 'input' }), title: 'Drover policy' };
}
