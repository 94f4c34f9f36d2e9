import { DroverError } from '@drover/foundation';
import type { Cli } from '../../cli.ts';

export interface Place {
  /** Absent: here. */
  readonly sandbox: string | undefined;
  readonly path: string;
}

/** `SANDBOX:PATH`, or a path here. What begins with `/`, `./` or `../` is always here. */
export function parsePlace(text: string): Place {
  const match = /^((?:[a-z0-9-]+\/)?[a-z0-9-]+):(.*)$/s.exec(text);
  if (match === null || /^\.{0,2}\//.test(text)) return { sandbox: undefined, path: text };
  return { sandbox: match[1], path: match[2] === '' ? '.' : (match[2] ?? '.') };
}

/** copies files, directories, or with `-` a tar stream, in or out. */
export default async function cp(cli: Cli, [source, target]: readonly [string, string]): Promise<void> {
  const from = parsePlace(source);
  const to = parsePlace(target);
  if ((from.sandbox === undefined) === (to.sandbox === undefined)) {
    throw new DroverError('invalid-argument', 'one side must be in a sandbox, and one here', {
      hint: 'write drover cp FILE SANDBOX:PATH, or drover cp SANDBOX:PATH FILE',
    });
  }
  if (to.sandbox !== undefined) {
    const { copyIn } = await import('../../transfer/copy-in.ts');
    const answer = await copyIn(cli, from.path, to.sandbox, to.path);
    if (cli.out.json) cli.out.object({ entries: Number(answer.entries), bytes: Number(answer.bytes) });
  } else if (from.sandbox !== undefined) {
    const { copyOut } = await import('../../transfer/copy-out.ts');
    const answer = await copyOut(cli, from.sandbox, from.path, to.path);
    if (cli.out.json && to.path !== '-') cli.out.object(answer);
  }
}
