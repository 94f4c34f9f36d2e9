import { hiddenPrefix } from '../become.ts';
import { actsOnNode, becomeFlag, ownCommand } from '../own-program.ts';
import type { Command } from './command.ts';

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
  const env = Object.fromEntries(
    Object.entries(command.env).map(([name, value]) => [actsOnNode.test(name) ? hiddenPrefix + name : name, value]),
  );
  return { ...command, file: argv[0] ?? process.execPath, argv, env, user: { ...command.user, ...root } };
}
