import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fromBinary } from '@bufbuild/protobuf';
import { clip, DroverError, errnoOf, reasonOf } from '@drover/foundation';
import { init } from '@drover/protocol';
import { exitOf } from '../processes/index.ts';
import { placeError, type Surroundings } from './files.ts';

/** Step `post-init`: runs the user's script. Its output and its status (128 + n for signal n) are those of the step. */
export async function runPostInit(input: Uint8Array, { env }: Surroundings): Promise<number> {
  const { script } = fromBinary(init.PostInitStepSchema, input);
  const directory = privateDirectory();
  try {
    const file = join(directory, 'post-init');
    writeFileSync(file, script, { flag: 'wx', mode: 0o700 });
    const [interpreter = 'sh', ...args] = interpreterOf(script);
    // The kernel would not run the file itself on a mount without exec.
    const child = spawn(interpreter, [...args, file], { stdio: ['ignore', 'inherit', 'inherit'], env });
    if (child.pid === undefined) throw interpreterError(interpreter, ((await once(child, 'error')) as [Error])[0]);
    return (await exitOf(child, child.pid)).code;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function privateDirectory(): string {
  const parent = tmpdir();
  try {
    return mkdtempSync(join(parent, 'drover-post-init-'));
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw placeError(parent, error);
    throw new DroverError('failed-precondition', `the sandbox has no directory ${clip(parent)} for the post-init script`, {
      hint: 'add it to the image, or set TMPDIR to an existing one',
      cause: error,
    });
  }
}

/** Parses `#!` as Linux does (execve(2)): the interpreter, and the rest of the line as one argument. Without it, sh. */
function interpreterOf(script: string): readonly string[] {
  const line = /^#![\t ]*([^\t\n ]+)[\t ]*([^\n]*)/.exec(script);
  if (line === null) return ['sh'];
  const [, interpreter = 'sh', argument = ''] = line;
  return argument.trimEnd() === '' ? [interpreter.trimEnd()] : [interpreter, argument.trimEnd()];
}

function interpreterError(interpreter: string, error: Error): DroverError {
  if (errnoOf(error) !== 'ENOENT') {
    return new DroverError('command-not-executable', `the script's interpreter ${clip(interpreter)} cannot be run: ${reasonOf(error)}`, {
      cause: error,
    });
  }
  return new DroverError('command-not-found', `the image has no ${clip(interpreter)} to run the script with`, {
    hint: "name an interpreter that it has in the script's first line (#!), or use an image with a shell",
    cause: error,
  });
}
