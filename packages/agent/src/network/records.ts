import { FileRecords, isSandboxId, type Logger, type SandboxId } from '@drover/foundation';
import { formatPolicy, parseAllowList, parsePolicy, type Policy, type PolicyDocument } from '@drover/spec/policy';
import { z } from 'zod';

/** The network of one sandbox on disk. */
export interface NetworkRecord {
  readonly id: SandboxId;
  readonly slot: number;
  readonly pool: string;
  readonly policy: Policy;
  readonly cut: boolean;
  /** It cannot reach the control listener. */
  readonly unregistered: boolean;
}

const schema = z.object({
  id: z.string().refine(isSandboxId),
  slot: z.int().nonnegative(),
  pool: z.string(),
  // Records of earlier agents have an allow list in its place.
  policy: z.custom<PolicyDocument>().optional(),
  allow: z.array(z.string()).optional(),
  cut: z.boolean(),
  // Records of earlier agents lack it.
  unregistered: z.boolean().default(false),
});

/**
 * The records of a host's sandbox networks. Not synced: they describe state of the kernel, which a power cut ends too. The slot of a record
 * that cannot be read is swept.
 */
export function networkRecords(directory: string, logger: Logger): FileRecords<NetworkRecord> {
  return new FileRecords<NetworkRecord>({
    directory,
    key: ({ id }) => id,
    parse: (value) => {
      const { policy, allow = [], ...record } = schema.parse(value);
      return { ...record, policy: policy === undefined ? parseAllowList(allow) : parsePolicy(policy) };
    },
    format: (record) => ({ ...record, policy: formatPolicy(record.policy) }),
    sync: false,
    logger,
  });
}
