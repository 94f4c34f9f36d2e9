import { accessSync, constants } from 'node:fs';
import { errnoOf, reasonOf } from '@drover/foundation';
import { actsOnNode, becomeFlag, ownCommand } from '../plan/own-program.ts';
import type { Command } from './command.ts';

/** What would act on the Node in between travels under another name. */
const hidden = 'DROVER_BECOME_';
const root = { uid: 0, gid: 0, groups: [] };

/**
 * The command for a user who is in more groups than one. libuv drops every group but the user's own when it spawns as somebody else, so
 * these begin as init's own program, as root, which takes the groups and the ids and then becomes the program, with the same pid. It
 * costs the start of a Node; root has every right already, and is left as it is.
 */
export function withGroups(command: Command): Command {
  const { uid, gid, groups } = command.user;
  if (groups.length === 0 || uid === 0) return command;
  const argv = [...ownCommand(), becomeFlag, String(uid), String(gid), groups.join(','), command.file, ...command.argv];
  const env = Object.fromEntries(Object.entries(command.env).map(([name, value]) => [actsOnNode.test(name) ? hidden + name : name, value]));
  return { ...command, file: argv[0] ?? process.execPath, argv, env, user: { ...command.user, ...root } };
}

/** Becomes the program; what it gives is the exit code when that cannot be, in the numbers of shells. */
export function become([uid, gid, groups, file, ...argv]: readonly string[]): number {
  if (uid === undefined || gid === undefined || groups === undefined || file === undefined) return 125;
  try {
    process.setgroups?.(groups.split(',').map(Number));
    process.setgid?.(Number(gid));
    process.setuid?.(Number(uid));
    accessSync(file, constants.X_OK);
    // What Node ignores would stay ignored; what it handles goes back to what it does by default (execve(2)).
    for (const signal of ['SIGPIPE', 'SIGXFSZ'] as const) process.on(signal, () => undefined);
    const env = Object.entries(process.env).map(([name, value]) => [name.startsWith(hidden) ? name.slice(hidden.length) : name, value]);
    process.execve?.(file, argv, Object.fromEntries(env) as NodeJS.ProcessEnv);
    return 126;
  } catch (error) {
    process.stderr.write(`${file}: cannot be executed in the sandbox: ${reasonOf(error)}\n`);
    return errnoOf(error) === 'ENOENT' ? 127 : 126;
  }
}
