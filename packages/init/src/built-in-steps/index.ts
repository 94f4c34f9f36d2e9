import { readFileSync, writeSync } from 'node:fs';
import { DroverError } from '@drover/foundation';
import { userEnvironment } from '../own-program.ts';
import { cloneRepositories, setUpGit } from './git.ts';
import { runPostInit } from './post-init.ts';
import { setUpSsh } from './ssh.ts';
import { placeConfig, type Surroundings } from './files.ts';

/** The built-in steps. Each takes its message as bytes, is idempotent (I-32), and returns its exit status. */
const steps: Readonly<Record<string, (input: Uint8Array, surroundings: Surroundings) => number | Promise<number>>> = {
  config: placeConfig,
  git: setUpGit,
  ssh: setUpSsh,
  clone: cloneRepositories,
  'post-init': runPostInit,
};

/** The process of a built-in step: its message on stdin, one line on stderr when it fails, its status. */
export async function runBuiltInStep(name: string): Promise<number> {
  try {
    const step = Object.hasOwn(steps, name) ? steps[name] : undefined;
    if (step === undefined) {
      throw new DroverError('unimplemented', 'this init has no such step', { hint: 'the control plane is newer: start the sandbox again' });
    }
    const env = userEnvironment(process.env);
    return await step(readFileSync(0), { home: env['HOME'] || '/', env });
  } catch (thrown) {
    const error = DroverError.from(thrown);
    const text = error.hint === undefined ? error.message : `${error.message}; ${error.hint}`;
    writeSync(2, `drover-step ${name}: ${text.replaceAll(/\s+/g, ' ')}\n`);
    return error.code === 'command-not-found' ? error.exitCode : 1;
  }
}
