import { showPath } from '@drover/archive';
import { DroverError } from '@drover/foundation';
import { argumentBytes } from '../../arguments.ts';
import type { Cli } from '../../cli.ts';
import { type CopyFlags, CopyReport } from '../../transfer/index.ts';

export interface Place {
  /** Absent: here. */
  readonly sandbox: string | undefined;
  /** A byte string. */
  readonly path: string;
}

/** `SANDBOX:PATH`, or a path here. What begins with `/`, `./` or `../` is always here. */
export function parsePlace(text: string): Place {
  const match = /^((?:[a-z0-9-]+\/)?[a-z0-9-]+):(.*)$/s.exec(text);
  if (match === null || /^\.{0,2}\//.test(text)) return { sandbox: undefined, path: text };
  return { sandbox: match[1], path: match[2] === '' ? '.' : (match[2] ?? '.') };
}

/** copies files, directories, or with `-` a tar stream, in or out. Anything that is left out is named, and makes the status 1. */
export default async function cp(cli: Cli, [source, target]: readonly [string, string], flags: CopyFlags): Promise<void> {
  const from = parsePlace(argumentBytes(source));
  const to = parsePlace(argumentBytes(target));
  if ((from.sandbox === undefined) === (to.sandbox === undefined)) {
    throw new DroverError('invalid-argument', 'one side must be in a sandbox, and one here', {
      hint: 'write drover cp FILE SANDBOX:PATH, or drover cp SANDBOX:PATH FILE',
    });
  }
  if (flags.archive === true && flags.chown !== undefined) {
    throw new DroverError('invalid-argument', '--archive keeps the owners and --chown sets another', { hint: 'leave one of the two out' });
  }
  const report = new CopyReport(cli);
  if (to.sandbox !== undefined) {
    const { copyIn } = await import('../../transfer/copy-in.ts');
    await copyIn(cli, report, from.path, to.sandbox, to.path, flags);
  } else if (from.sandbox !== undefined) {
    const { copyOut } = await import('../../transfer/copy-out.ts');
    await copyOut(cli, report, from.sandbox, from.path, to.path, flags);
  }
  report.finish(to.path === '-' ? undefined : showPath(source));
}
