import { accessSync, constants } from 'node:fs';
import { errnoOf, reasonOf } from '@drover/foundation';

/** Variables of the program that would act on this Node.js are passed with this prefix. */
export const hiddenPrefix = 'DROVER_BECOME_';

/** Becomes another program, as another user with groups. Returns only when that fails, with the exit code of a shell. */
export function become([uid, gid, groups, file, ...argv]: readonly string[]): number {
  if (uid === undefined || gid === undefined || groups === undefined || file === undefined) return 125;
  try {
    process.setgroups?.(groups.split(',').map(Number));
    process.setgid?.(Number(gid));
    process.setuid?.(Number(uid));
    accessSync(file, constants.X_OK);
    // What Node ignores would stay ignored; what it handles goes back to what it does by default (execve(2)).
    for (const signal of ['SIGPIPE', 'SIGXFSZ'] as const) process.on(signal, () => undefined);
    const env = Object.entries(process.env).map(([name, value]) => [
      name.startsWith(hiddenPrefix) ? name.slice(hiddenPrefix.length) : name,
      value,
    ]);
    process.execve?.(file, argv, Object.fromEntries(env) as NodeJS.ProcessEnv);
    return 126;
  } catch (error) {
    process.stderr.write(`${file}: cannot be executed in the sandbox: ${reasonOf(error)}\n`);
    return errnoOf(error) === 'ENOENT' ? 127 : 126;
  }
}
