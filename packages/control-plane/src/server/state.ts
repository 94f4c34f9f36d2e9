import { join } from 'node:path';
import { DroverError, type Clock, type Logger } from '@drover/foundation';
import { openCertificateAuthority, type CertificateAuthority } from '@drover/pki';
import { openAdminToken } from '../api/index.ts';
import { SecretBox } from '../secrets/index.ts';
import { openStore, type Store } from '../store/index.ts';
import { certificateNames } from './addresses.ts';
import { ServerCertificate } from './certificate.ts';
import { DataDirectory, type ServerState } from './data-directory.ts';
import type { ControlPlaneOptions } from './options.ts';

/** The state that the server keeps across restarts. */
export interface PersistentState {
  readonly directory: DataDirectory;
  readonly last: ServerState;
  readonly ca: CertificateAuthority;
  readonly secrets: SecretBox;
  readonly certificate: ServerCertificate;
  readonly store: Store;
  readonly adminToken: string;
}

/**
 * Opens the data directory, the credentials and the store; `opened` closes them.
 * @throws {DroverError} invalid-config for credentials that are missing or unreadable (I-28); failed-precondition
 */
export async function openState(
  options: ControlPlaneOptions,
  clock: Clock,
  logger: Logger,
  opened: AsyncDisposableStack,
): Promise<PersistentState> {
  const directory = await DataDirectory.open(options.dataDirectory);
  opened.defer(() => directory.close());
  const last = await directory.readState();
  const ca = await openCertificateAuthority(join(directory.path, 'pki'), { trustDomain: options.trustDomain ?? 'drover', clock });
  // Stored beside the CA: a replica needs copies of both.
  const secrets = await SecretBox.open(join(directory.path, 'pki', 'secrets.key'));
  const certificate = await ServerCertificate.issue(ca, certificateNames(options));
  const store = await openStore(options.store ?? join(directory.path, 'drover.db'), { logger, clock });
  opened.defer(async () => await store.close());
  checkSameStore(last.store, store.kind, directory.path);
  return { directory, last, ca, secrets, certificate, store, adminToken: await openAdminToken(directory.path, store.tokens) };
}

/**
 * With another store, the server would show an empty fleet and refuse its own hosts.
 * @throws {DroverError} failed-precondition
 */
function checkSameStore(before: Store['kind'] | undefined, now: Store['kind'], path: string): void {
  if (before === undefined || before === now) return;
  const [then, today] = [before, now].map((kind) => (kind === 'sqlite' ? 'SQLite' : 'PostgreSQL'));
  throw new DroverError('failed-precondition', `the server of ${path} has its state in ${then}, not in ${today}`, {
    hint: before === 'postgres' ? 'use the same --store as before' : 'start it without --store, or use another --data for another server',
  });
}
