import { collect, type Definition } from '../../definition.ts';

export function defineHostCommands(define: Definition): void {
  const host = define.group('host', 'list, add and change hosts');
  const load = () => import('./host.ts');
  define
    .command(
      host,
      'ls',
      'list hosts',
      async () => (await load()).ls,
      (command) => command.option('-a, --all', 'include removed hosts'),
    )
    .alias('list');
  define.command(host, 'get <host>', 'show a host', async () => (await load()).get);
  define.command(
    host,
    'token',
    'create a token that lets a machine join as a host',
    async () => (await load()).token,
    (command) =>
      command
        .option('--ttl <duration>', 'how long the token is valid (1h)')
        .option('--uses <number>', 'how many machines may join with it (1)')
        .option('--label <key=value>', 'a label for hosts that join with this token (repeatable)', collect),
  );
  define.command(host, 'cordon <host>', 'stop placing sandboxes on a host', async () => (await load()).cordon);
  define.command(host, 'uncordon <host>', 'allow placement on a host again, and end a drain', async () => (await load()).uncordon);
  define.command(
    host,
    'drain <host>',
    'stop placing sandboxes on a host, and wait until it has none',
    async () => (await load()).drain,
    (command) => command.option('--stop', 'stop sandboxes that cannot move'),
  );
  define
    .command(
      host,
      'rm <host>',
      'remove a host',
      async () => (await load()).rm,
      (command) => command.option('-f, --force', 'remove it even if it has sandboxes; they are lost'),
    )
    .alias('remove');
}
