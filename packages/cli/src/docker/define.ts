import { imageListFlags, imageRemoveFlags, listFlags, noWaitFlag, pullFlags, removeFlags, stopFlags } from '../commands/index.ts';
import type { Definition } from '../definition.ts';

/** Commands under the names that docker has for them. */
export function defineDockerCommands(define: Definition): void {
  const { program } = define;
  const sandbox = () => import('../commands/sandbox/sandbox.ts');
  const image = () => import('../commands/image/image.ts');
  define.command(program, 'ps', 'list sandboxes, stopped ones included (sandbox ls)', async () => (await sandbox()).ls, listFlags);
  define.command(program, 'start <sandbox...>', 'start stopped sandboxes (sandbox start)', async () => (await sandbox()).start, noWaitFlag);
  define.command(program, 'stop <sandbox...>', 'stop sandboxes (sandbox stop)', async () => (await sandbox()).stop, stopFlags);
  define.command(
    program,
    'kill <sandbox...>',
    'stop sandboxes with SIGKILL (sandbox kill)',
    async () => (await sandbox()).kill,
    noWaitFlag,
  );
  define.command(
    program,
    'rm <sandbox...>',
    'remove sandboxes and their files (sandbox rm)',
    async () => (await sandbox()).rm,
    removeFlags,
  );
  define
    .command(program, 'inspect <sandbox>', 'show a sandbox as JSON (sandbox get)', async () => (await sandbox()).get)
    .setOptionValueWithSource('output', 'json', 'default');
  define.command(program, 'images', 'list images (image ls)', async () => (await image()).ls, imageListFlags);
  define.command(program, 'pull <image>', 'pull an image on every host (image pull)', async () => (await image()).pull, pullFlags);
  define.command(program, 'rmi <image...>', 'remove images (image rm)', async () => (await image()).rm, imageRemoveFlags);
}
