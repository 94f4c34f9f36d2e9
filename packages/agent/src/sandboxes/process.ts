import { clip, DroverError } from '@drover/foundation';
import type { MainProcess } from '@drover/init';
import { parseSignal } from '@drover/spec';
import type { ImageConfig } from '../images/index.ts';
import type { ReceivedSpec } from './received-spec.ts';

const defaultPath = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * The sandbox's main process: the spec over the image's config, combined as OCI runtimes do
 * (image-spec, config.md: Entrypoint and Cmd; replacing the Entrypoint drops the image's Cmd).
 * @param gatewayEnv leads programs to the egress proxy; values of the image and the spec override it
 * @param secretEnv the secrets that are variables; they override all others
 * @throws {DroverError} invalid-argument when neither names a command, or the image names a signal that does not exist
 */
export function resolveMain(
  spec: ReceivedSpec,
  image: ImageConfig,
  gatewayEnv: readonly string[],
  secretEnv: readonly string[] = [],
): MainProcess {
  const entrypoint = spec.entrypoint ?? image.entrypoint;
  const command = spec.command.length > 0 || spec.entrypoint !== undefined ? spec.command : image.command;
  const argv = [...entrypoint, ...command];
  if (argv.length === 0) {
    throw new DroverError('invalid-argument', `the image ${spec.message.image} names no command to run`, {
      hint: 'name one: drover run IMAGE -- COMMAND',
    });
  }
  const ownEnv = spec.env.map(({ name, value }) => `${name}=${value}`);
  const terminalEnv = spec.terminal !== undefined ? ['TERM=xterm-256color'] : [];
  return {
    argv,
    env: mergeEnvironment([defaultPath], terminalEnv, gatewayEnv, image.env, ownEnv, secretEnv),
    workdir: spec.workdir === '' ? image.workdir || '/' : spec.workdir,
    user: spec.user === '' ? image.user : spec.user,
    terminal: spec.terminal !== undefined,
    rows: spec.terminal?.rows ?? 0,
    columns: spec.terminal?.columns ?? 0,
    stdin: spec.stdin,
    stopSignal: parseStopSignal(spec.message.image, image.stopSignal || 'SIGTERM'),
  };
}

function parseStopSignal(image: string, text: string): number {
  try {
    return parseSignal(text);
  } catch (error) {
    throw new DroverError('invalid-argument', `the image ${image} names an unknown STOPSIGNAL: ${JSON.stringify(clip(text))}`, {
      hint: DroverError.from(error).hint ?? 'correct the image',
      cause: error,
    });
  }
}

/** One value per name, the last one; in the order in which the names first occur. */
export function mergeEnvironment(...lists: readonly (readonly string[])[]): readonly string[] {
  const byName = new Map<string, string>();
  for (const entry of lists.flat()) {
    const at = entry.indexOf('=');
    byName.set(at < 0 ? entry : entry.slice(0, at), entry);
  }
  return [...byName.values()];
}
