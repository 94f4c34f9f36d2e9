import { DroverError } from '@drover/foundation';
import type { Cli } from '../../cli.ts';
import {
  currentContext,
  findContext,
  listContexts,
  loadContext,
  parseContextName,
  readContext,
  removeContext,
  saveContext,
  useContext,
} from '../../context/index.ts';

/** Does not show tokens. */
export async function ls(cli: Cli): Promise<void> {
  const current = await currentContext(cli.env);
  const contexts = (await listContexts(cli.env)).map(({ name, server }) => ({ name, server, current: name === current }));
  cli.out.list(
    contexts,
    (context) => context,
    [
      { title: 'CURRENT', value: ({ current: isCurrent }) => (isCurrent ? '*' : '') },
      { title: 'NAME', value: ({ name }) => name },
      { title: 'SERVER', value: ({ server }) => server },
    ],
    'no contexts; drover up and drover context add create them',
  );
}

export async function use(cli: Cli, [text]: readonly [string]): Promise<void> {
  const { name, server } = await findContext(cli.env, text);
  await useContext(cli.env, name);
  if (cli.out.json) cli.out.object({ name, server, current: true });
  else cli.out.line(name);
}

/** Saves a context. The first one becomes the current one. */
export async function add(cli: Cli, [text]: readonly [string]): Promise<void> {
  const name = parseContextName(text);
  if (cli.connection.server === undefined) {
    throw new DroverError('invalid-argument', 'no server was given', {
      hint: `drover context add ${name} --server https://HOST:PORT --token TOKEN --ca FILE`,
    });
  }
  if ((await readContext(cli.env, name)) !== undefined) {
    throw new DroverError('name-taken', `the context ${JSON.stringify(name)} already exists`, {
      hint: `choose another name, or remove it with drover context rm ${name}`,
    });
  }
  const context = await loadContext(cli.env, cli.connection);
  await saveContext(cli.env, { name, ...context });
  const isFirst = (await currentContext(cli.env)) === undefined;
  if (isFirst) await useContext(cli.env, name);
  if (cli.out.json) cli.out.object({ name, server: context.server, current: isFirst });
  else cli.out.line(name);
}

export async function rm(cli: Cli, [text]: readonly [string]): Promise<void> {
  const { name, server } = await findContext(cli.env, text);
  const wasCurrent = (await currentContext(cli.env)) === name;
  await removeContext(cli.env, name);
  if (cli.out.json) cli.out.object({ name, server, current: false });
  else cli.out.line(name);
  if (wasCurrent) cli.out.note('it was the current context; choose another with drover context use');
}
