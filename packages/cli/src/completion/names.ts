import type { DroverClient } from '@drover/sdk';
import { connect, contextNames } from '../context/index.ts';
import { completionTimeoutMs } from '../limits.ts';
import { sandboxLabel } from '../output/index.ts';

export interface Candidate {
  readonly value: string;
  readonly description: string;
}

/** @param operands the arguments before the cursor */
type Source = (client: DroverClient, signal: AbortSignal, operands: readonly string[]) => Promise<readonly Candidate[]>;

/** Finds names with one call to the control plane each. */
const sources = {
  sandboxes: async ({ sandboxes }, signal) =>
    (await sandboxes.list({ signal })).map((sandbox) => ({ value: sandboxLabel(sandbox), description: sandbox.spec?.image ?? '' })),
  hosts: async ({ hosts }, signal) => (await hosts.list({ signal })).map(({ name, id }) => ({ value: name, description: id })),
  identities: async ({ identities }, signal) =>
    (await identities.list(signal)).map(({ commonName, sandboxId }) => ({ value: commonName, description: sandboxId })),
  execs: async ({ sandboxes }, signal, [sandbox = '']) =>
    (await sandboxes.execs(sandbox, signal))
      .filter(({ exit }) => exit === undefined)
      .map(({ execId, argv }) => ({ value: execId, description: argv.join(' ') })),
  volumes: async ({ volumes }, signal) =>
    (await volumes.list({ signal })).map(({ name, hostName }) => ({ value: name, description: hostName })),
  images: async ({ images }, signal) => {
    const references = (await images.list({ signal })).images.map(({ image }) => image?.reference ?? '');
    const pulled = [...new Set(references)].filter((value) => value !== '' && value !== 'host');
    return [{ value: 'host', description: "the host's own system" }, ...pulled.map((value) => ({ value, description: '' }))];
  },
} as const satisfies Readonly<Record<string, Source>>;

export type NameKind = keyof typeof sources | 'contexts';

/** Returns existing names, or none if the control plane does not respond in time, so that the shell does not hang. */
export async function namesOf(kind: NameKind, env: NodeJS.ProcessEnv, operands: readonly string[] = []): Promise<readonly Candidate[]> {
  if (kind === 'contexts') return (await contextNames(env).catch(() => [])).map((value) => ({ value, description: '' }));
  let client: DroverClient | undefined;
  const late = Promise.withResolvers<readonly Candidate[]>();
  const timer = setTimeout(() => late.resolve([]), completionTimeoutMs);
  try {
    client = await connect(env, {});
    return await Promise.race([sources[kind](client, AbortSignal.timeout(completionTimeoutMs), operands), late.promise]);
  } catch {
    // Completing commands and flags needs no control plane.
    return [];
  } finally {
    clearTimeout(timer);
    client?.close();
  }
}
