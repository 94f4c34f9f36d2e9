import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { JsonValue } from '@bufbuild/protobuf';
import { api } from '@drover/protocol';
import type { Cli } from '../../cli.ts';
import { type Column, messageJson } from '../../output/index.ts';
import { age } from '../sandbox/show.ts';

const identityJson = (identity: api.Identity): JsonValue => messageJson(api.IdentitySchema, identity);

const columns: readonly Column<api.Identity>[] = [
  { title: 'NAME', value: (i) => i.commonName },
  { title: 'SANDBOX', value: (i) => i.sandboxId },
  { title: 'THUMBPRINT', value: (i) => i.thumbprint.slice(0, 16) },
  { title: 'REGISTERED', value: (i) => age(i.registeredAt) },
  { title: 'SEEN', value: (i) => age(i.lastSeenAt) },
];

/** The registry (I-7, I-10). */
export async function ls(cli: Cli): Promise<void> {
  const client = await cli.connect();
  const identities = await client.identities.list(cli.signal);
  cli.out.list(identities, identityJson, columns, 'no identities; a sandbox registers when it starts');
}

export async function get(cli: Cli, [reference]: readonly [string]): Promise<void> {
  const client = await cli.connect();
  const identity = await client.identities.get(reference, cli.signal);
  if (cli.out.json) return cli.out.object(identityJson(identity));
  cli.out.details([
    ['name', identity.commonName],
    ['sandbox', identity.sandboxId],
    ['project', identity.project],
    ['thumbprint', identity.thumbprint],
    ['registered', identity.registeredAt === undefined ? '' : timestampDate(identity.registeredAt).toISOString()],
    ['last seen', identity.lastSeenAt === undefined ? '' : timestampDate(identity.lastSeenAt).toISOString()],
  ]);
}

/** I-11: also ends the session. The sandbox keeps running and is dialled again, but stays untrusted until its next start. */
export async function evict(cli: Cli, [reference]: readonly [string]): Promise<void> {
  const client = await cli.connect();
  const identity = await client.identities.evict(reference, cli.signal);
  if (cli.out.json) cli.out.object(identityJson(identity));
  else cli.out.line(identity.commonName);
}
