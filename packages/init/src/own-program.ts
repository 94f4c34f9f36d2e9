import { argumentsOf } from '@drover/linux';

/** `argv[0]` of a built-in step. */
const ownProgram = 'drover-step';
/** Makes init's bundle run a step: `init.cjs --step NAME`. */
export const stepFlag = '--step';
/** Makes it become another program: `init.cjs --become UID GID GROUP,GROUP FILE ARGV…`. */
export const becomeFlag = '--become';

/**
 * A built-in step has the user's environment, parts of which would act on the Node.js and the loader that run the step. Those variables are
 * renamed for the step, and restored for the programs that it starts.
 */
const hidden = 'DROVER_STEP_';
export const actsOnNode = /^(?:NODE_|LD_|UV_|OPENSSL_|SSL_|GLIBC_|MALLOC_|ICU_)/;

interface Program {
  readonly argv: readonly string[];
  /** `NAME=value`. */
  readonly env: readonly string[];
}

/**
 * The program of a step. A built-in step is init's own bundle, run by the same Node.js, loader and flags as init: it needs nothing of the
 * image (I-38).
 */
export function programOf(step: Program): Program {
  const [name, ...rest] = step.argv;
  if (name !== ownProgram) return step;
  return {
    argv: [...ownCommand(), stepFlag, ...rest],
    env: step.env.map((entry) => (actsOnNode.test(entry) ? `${hidden}${entry}` : entry)),
  };
}

/** The user's environment, for the programs that a built-in step starts. */
export function userEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(env).map(([name, value]) => [name.startsWith(hidden) ? name.slice(hidden.length) : name, value]),
  );
}

/** The command of this process up to the bundle. In /proc it begins with the loader, unlike in process.argv. */
export function ownCommand(): readonly string[] {
  const words = argumentsOf('self');
  return words.slice(0, words.indexOf(process.argv[1] ?? '') + 1);
}
