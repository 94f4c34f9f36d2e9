import type { Definition } from '../../definition.ts';

export function defineIdentityCommands(define: Definition): void {
  const identity = define.group('identity', 'list, show and evict the identities of sandboxes').alias('id');
  const load = () => import('./identity.ts');
  define.command(identity, 'ls', 'list identities', async () => (await load()).ls).alias('list');
  define.command(identity, 'get <identity>', 'show the identity of a sandbox, or of a thumbprint', async () => (await load()).get);
  define.command(
    identity,
    'evict <identity>',
    'revoke an identity and end its session; the sandbox receives another at its next start',
    async () => (await load()).evict,
  );
}
