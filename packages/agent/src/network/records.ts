import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isSandboxId, type Logger, type SandboxId } from '@drover/foundation';
import { formatPolicy, parseAllowList, parsePolicy, type Policy, type PolicyDocument } from '@drover/spec/policy';

/** What is kept on disk of one sandbox's network. */
export interface NetworkRecord {
  readonly id: SandboxId;
  readonly slot: number;
  readonly pool: string;
  readonly policy: Policy;
  readonly cut: boolean;
  /** It does not reach the control listener. */
  readonly unregistered: boolean;
}

/**
 * The records of a host's sandbox networks, one file each. Written by rename but not synced: they describe what lives
 * in the kernel, which a power cut takes away as well.
 */
export class NetworkRecords {
  readonly #directory: string;
  readonly #logger: Logger;

  constructor(directory: string, logger: Logger) {
    this.#directory = directory;
    this.#logger = logger;
  }

  /** Everything on disk; what cannot be read is removed, and its slot is swept as nobody's. */
  async load(): Promise<readonly NetworkRecord[]> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const records: NetworkRecord[] = [];
    for (const name of await readdir(this.#directory)) {
      const path = join(this.#directory, name);
      try {
        records.push(parse(JSON.parse(await readFile(path, 'utf8')), name));
      } catch (error) {
        this.#logger.warn({ path, err: error instanceof Error ? error.message : String(error) }, 'unreadable network record removed');
        await rm(path, { recursive: true, force: true });
      }
    }
    return records;
  }

  async save(record: NetworkRecord): Promise<void> {
    const path = join(this.#directory, `${record.id}.json`);
    const temporary = `${path}.tmp`;
    await writeFile(temporary, JSON.stringify({ ...record, policy: formatPolicy(record.policy) }), { mode: 0o600 });
    await rename(temporary, path);
  }

  async remove(id: SandboxId): Promise<void> {
    await rm(join(this.#directory, `${id}.json`), { force: true });
  }
}

function parse(value: unknown, name: string): NetworkRecord {
  // Records of earlier agents lack `unregistered`, and have the policy as an allow list.
  const { id, slot, pool, policy, allow, cut, unregistered = false } = value as Partial<Record<keyof NetworkRecord | 'allow', unknown>>;
  if (
    typeof id !== 'string' ||
    !isSandboxId(id) ||
    name !== `${id}.json` ||
    !Number.isSafeInteger(slot) ||
    (slot as number) < 0 ||
    typeof pool !== 'string' ||
    typeof cut !== 'boolean' ||
    typeof unregistered !== 'boolean'
  ) {
    throw new TypeError('not a network record');
  }
  return {
    id,
    slot: slot as number,
    pool,
    policy: policy === undefined ? parseAllowList(allow as readonly string[]) : parsePolicy(policy as PolicyDocument),
    cut,
    unregistered,
  };
}
