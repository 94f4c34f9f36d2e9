import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DroverError, errnoOf, parseLabel, writeFileAtomic } from '@drover/foundation';

/** What this host was told about itself when it joined. */
export interface HostSettings {
  readonly name?: string;
  readonly labels: Readonly<Record<string, string>>;
}

const file = (stateDirectory: string): string => join(stateDirectory, 'host.json');

/** Keeps what is given, and what was kept before of the rest. @throws {DroverError} */
export async function saveHostSettings(
  stateDirectory: string,
  given: { readonly name: string | undefined; readonly labels: readonly string[] | undefined },
): Promise<void> {
  if (given.name === undefined && given.labels === undefined) return;
  const before = await loadHostSettings(stateDirectory);
  const settings: HostSettings = {
    ...before,
    ...(given.name !== undefined && { name: given.name }),
    ...(given.labels !== undefined && { labels: Object.fromEntries(given.labels.map(parseLabel)) }),
  };
  await mkdir(stateDirectory, { recursive: true, mode: 0o700 });
  await writeFileAtomic(file(stateDirectory), `${JSON.stringify(settings, undefined, 2)}\n`, 0o600);
}

/** @throws {DroverError} invalid-config */
export async function loadHostSettings(stateDirectory: string): Promise<HostSettings> {
  let text: string;
  try {
    text = await readFile(file(stateDirectory), 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return { labels: {} };
    throw DroverError.from(error);
  }
  try {
    const { name, labels } = JSON.parse(text) as { name?: unknown; labels?: unknown };
    const pairs = Object.entries((labels ?? {}) as Record<string, unknown>);
    if ((name === undefined || typeof name === 'string') && pairs.every(([, value]) => typeof value === 'string')) {
      return { ...(name !== undefined && { name }), labels: Object.fromEntries(pairs as [string, string][]) };
    }
  } catch {
    // Said below.
  }
  throw new DroverError('invalid-config', `${file(stateDirectory)} cannot be read`, {
    hint: 'move it away, and give --name and --label again',
  });
}
