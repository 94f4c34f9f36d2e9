import { clip, DroverError } from '@drover/foundation';
import type { MainProcess } from '@drover/init';
import type { sandbox } from '@drover/protocol';
import { parseSignal } from '@drover/spec';
import type { ImageConfig } from '../images/images.ts';

const defaultPath = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * What the sandbox's main process is: the spec over the image's config, as OCI runtimes combine them
 * (image-spec, config.md: Entrypoint and Cmd; replacing the Entrypoint drops the image's Cmd).
 * @param gatewayEnv how programs find the egress proxy; the image's and the spec's own values win
 * @param secretEnv the secrets that are variables; they win over all others
 * @throws {DroverError} invalid-argument when neither names a command, or the image a signal that does not exist
 */
export function resolveMain(
  spec: sandbox.SandboxSpec,
  image: ImageConfig,
  gatewayEnv: readonly string[],
  secretEnv: readonly string[] = [],
): MainProcess {
  const entrypoint = spec.setEntrypoint ? spec.entrypoint : image.entrypoint;
  const command = spec.command.length > 0 || spec.setEntrypoint ? spec.command : image.command;
  const argv = [...entrypoint, ...command];
  if (argv.length === 0) {
    throw new DroverError('invalid-argument', `the image ${spec.image} names no command to run`, {
      hint: 'give one: drover run IMAGE -- COMMAND',
    });
  }
  const ownEnv = spec.env.map(({ name, value }) => `${name}=${value}`);
  const terminalEnv = spec.terminal ? ['TERM=xterm-256color'] : [];
  return {
    argv,
    env: mergeEnvironment([defaultPath], terminalEnv, gatewayEnv, image.env, ownEnv, secretEnv),
    workdir: spec.workdir === '' ? image.workdir || '/' : spec.workdir,
    user: spec.user === '' ? image.user : spec.user,
    terminal: spec.terminal,
    rows: spec.terminalRows || 24,
    columns: spec.terminalColumns || 80,
    stdin: spec.stdin,
    stopSignal: parseStopSignal(spec.image, image.stopSignal || 'SIGTERM'),
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

/** One value a name, the last one given; in the order in which the names first came. */
export function mergeEnvironment(...lists: readonly (readonly string[])[]): readonly string[] {
  const byName = new Map<string, string>();
  for (const entry of lists.flat()) {
    const at = entry.indexOf('=');
    byName.set(at < 0 ? entry : entry.slice(0, at), entry);
  }
  return [...byName.values()];
}
