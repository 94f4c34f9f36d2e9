import { execFile } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { commandLine, program, type Way } from './first-byte.ts';

const run = promisify(execFile);

/** `runc run` with the same root and program and its own default configuration: what the parts below Drover cost by themselves. */
export async function bareRunc(runc: string, rootfs: string, directory: string): Promise<Way> {
  const bundle = join(directory, 'runc-bundle');
  const state = join(directory, 'runc-state');
  await mkdir(bundle, { recursive: true });
  await run(runc, ['spec', '--bundle', bundle]);
  const path = join(bundle, 'config.json');
  const config = JSON.parse(await readFile(path, 'utf8')) as { process: { terminal: boolean; args: string[] }; root: object };
  config.process.terminal = false;
  config.process.args = [...program];
  config.root = { path: rootfs, readonly: true };
  await writeFile(path, JSON.stringify(config));
  let count = 0;
  return commandLine(
    'runc run',
    () => [runc, '--root', state, 'run', '--bundle', bundle, `bench-${process.pid}-${++count}`],
    process.env,
    // It removes the container itself when the program ends.
    async () => undefined,
  );
}
