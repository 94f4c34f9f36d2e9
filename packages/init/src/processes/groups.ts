import { hiddenPrefix } from '../become.ts';
import { actsOnNode, becomeFlag, ownCommand } from '../own-program.ts';
import type { Command } from './command.ts';

const root = { uid: 0, gid: 0, groups: [] };

/**
 * The command of a user with supplementary groups. libuv drops these when it spawns a process as another user. The command therefore starts as
 * init's own program, as root, which sets the groups and ids and then becomes the command, with the same pid. That costs the start of a Node;
 * root needs no groups.
 */
export function withGroups(command: Command): Command {
  const { uid, gid, groups } = command.user;
  if (groups.length === 0 || uid === 0) return command;
  const argv = [...ownCommand(), becomeFlag, String(uid), String(gid), groups.join(','), command.file, ...command.argv];
  const env = Object.fromEntries(
    Object.entries(command.env).map(([name, value]) => [actsOnNode.test(name) ? hiddenPrefix + name : name, value]),
  );
  return { ...command, file: argv[0] ?? process.execPath, argv, env, user: { ...command.user, ...root } };
}
