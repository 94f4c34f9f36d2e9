import type { Command } from 'commander';
import type { Definition } from '../../definition.ts';

export function defineImageCommands(define: Definition): void {
  const image = define.group('image', 'pull, list and remove images');
  const load = () => import('./image.ts');
  define.command(image, 'pull <image>', 'pull an image on every host', async () => (await load()).pull, pullFlags);
  define.command(image, 'ls', 'list images', async () => (await load()).ls, imageListFlags).alias('list');
  define.command(image, 'rm <image...>', 'remove images', async () => (await load()).rm, imageRemoveFlags).alias('remove');
  define.command(
    image,
    'prune',
    'remove images that no sandbox uses',
    async () => (await load()).prune,
    (command) => onHost(command).option('--older-than <duration>', 'only images unused for this long'),
  );
}

function onHost(command: Command): Command {
  return command.option('--host <host>', 'on this host only');
}

export const imageListFlags = onHost;
export const imageRemoveFlags = onHost;

export function pullFlags(command: Command): Command {
  return onHost(command).option('--insecure', 'allow plain HTTP and invalid certificates');
}
