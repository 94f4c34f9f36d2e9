import { argumentsOf } from '@drover/linux';

/** `argv[0]` of a built-in step. */
const ownProgram = 'drover-step';
/** Tells init's bundle that it is to be a step rather than PID 1: `init.cjs --step NAME`. */
export const stepFlag = '--step';
/** Tells it to become another program: `init.cjs --become UID GID GROUP,GROUP FILE ARGV…`. */
export const becomeFlag = '--become';

/**
 * A built-in step runs in the environment that the user chose for the sandbox, parts of which would act on the Node and the loader that
 * run the step. Those travel under another name, and what the step starts has them back.
 */
const hidden = 'DROVER_STEP_';
export const actsOnNode = /^(?:NODE_|LD_|UV_|OPENSSL_|SSL_|GLIBC_|MALLOC_|ICU_)/;

interface Program {
  readonly argv: readonly string[];
  /** `NAME=value`. */
  readonly env: readonly string[];
}

/**
 * What to run for a step. A built-in one is init's own bundle, run by the Node, the loader and the flags that init itself was started
 * with: it needs nothing of the image (I-38).
 */
export function programOf(step: Program): Program {
  const [name, ...rest] = step.argv;
  if (name !== ownProgram) return step;
  return {
    argv: [...ownCommand(), stepFlag, ...rest],
    env: step.env.map((entry) => (actsOnNode.test(entry) ? `${hidden}${entry}` : entry)),
  };
}

/** The environment as the user chose it, for what a built-in step starts. */
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
