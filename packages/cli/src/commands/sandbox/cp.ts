import { showPath } from '@drover/archive';
import { DroverError } from '@drover/foundation';
import { argumentBytes } from '../../arguments.ts';
import type { Cli } from '../../cli.ts';
import { type CopyFlags, CopyReport } from '../../transfer/index.ts';

export interface Place {
  /** Absent: the path is local. */
  readonly sandbox: string | undefined;
  /** A byte string. */
  readonly path: string;
}

/** Parses `SANDBOX:PATH` or a local path. A text that starts with `/`, `./` or `../` is always local. */
export function parsePlace(text: string): Place {
  const match = /^((?:[a-z0-9-]+\/)?[a-z0-9-]+):(.*)$/s.exec(text);
  if (match === null || /^\.{0,2}\//.test(text)) return { sandbox: undefined, path: text };
  return { sandbox: match[1], path: match[2] === '' ? '.' : (match[2] ?? '.') };
}

/** copies files, directories or, with `-`, a tar stream in or out. Files that cannot be copied are named, and the status is 1. */
export default async function cp(cli: Cli, [source, target]: readonly [string, string], flags: CopyFlags): Promise<void> {
  const from = parsePlace(argumentBytes(source));
  const to = parsePlace(argumentBytes(target));
  if ((from.sandbox === undefined) === (to.sandbox === undefined)) {
    throw new DroverError('invalid-argument', 'one side must be in a sandbox and the other local', {
      hint: 'write drover cp FILE SANDBOX:PATH, or drover cp SANDBOX:PATH FILE',
    });
  }
  if (flags.archive === true && flags.chown !== undefined) {
    throw new DroverError('invalid-argument', '--archive and --chown exclude each other', { hint: 'leave one of them out' });
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
