import type { Definition } from '../../definition.ts';

export function defineVolumeCommands(define: Definition): void {
  const volume = define.group('volume', 'create, list and remove volumes, which outlive sandboxes');
  const load = () => import('./volume.ts');
  define.command(
    volume,
    'create <name>',
    'create a volume, and print its name',
    async () => (await load()).create,
    (command) =>
      command
        .requiredOption('--size <bytes>', 'its capacity, such as 1g')
        .option('--host <host>', 'create it on this host; sandboxes that mount it run there'),
  );
  define
    .command(
      volume,
      'ls',
      'list volumes',
      async () => (await load()).ls,
      (command) => command.option('--host <host>', 'on this host only'),
    )
    .alias('list');
  define.command(volume, 'get <volume>', 'show a volume', async () => (await load()).get).alias('inspect');
  define.command(volume, 'rm <volume...>', 'remove volumes and their files', async () => (await load()).rm).alias('remove');
}
