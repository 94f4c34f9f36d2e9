import { resolve } from 'node:path';
import { prepareDirectory } from '@drover/foundation';
import { createLogger } from '@drover/foundation/log';
import { startControlPlane } from '@drover/control-plane';
import { connectToSupervisor, lastEndVariable } from '@drover/supervisor';
import type { Cli } from '../../cli.ts';
import { defaultDataDirectory, linkListen, type LivenessFlags, parseListen, parseLiveness, parsePublicHost } from '../../settings/index.ts';

interface ServeFlags extends LivenessFlags {
  readonly data?: string;
  readonly listen: string;
  readonly linkListen?: string;
  readonly publicHost?: string;
  readonly store?: string;
}

/** Runs the control plane until SIGINT or SIGTERM. Logs to stderr, and prints its address to stdout. */
export default async function serve(cli: Cli, _: readonly [], flags: ServeFlags): Promise<void> {
  const listen = parseListen(flags.listen);
  const liveness = parseLiveness(flags);
  const data = resolve(flags.data ?? defaultDataDirectory(cli.env));
  await prepareDirectory(data, 'data directory', '--data');
  const end = AbortSignal.any([cli.signal, connectToSupervisor(cli.env)]);
  const controlPlane = await startControlPlane({
    dataDirectory: data,
    listen,
    linkListen: linkListen(listen, flags.linkListen),
    ...liveness,
    ...(flags.store !== undefined && { store: flags.store }),
    ...(flags.publicHost !== undefined && { publicHost: parsePublicHost(flags.publicHost) }),
    lastEnd: cli.env[lastEndVariable] ?? '',
    logger: createLogger({ name: 'control-plane' }),
  });
  if (cli.out.json) cli.out.record({ ready: true, server: controlPlane.address, link: controlPlane.linkAddress, data });
  else cli.out.line(`drover: the control plane is ready on ${controlPlane.address}`);
  await aborted(end);
  await controlPlane.close();
}

/** Resolves when the signal aborts. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve_) => {
    if (signal.aborted) {
      resolve_();
      return;
    }
    // Keeps the process alive, which a signal listener does not.
    const timer = setInterval(() => undefined, 2 ** 30);
    signal.addEventListener(
      'abort',
      () => {
        clearInterval(timer);
        resolve_();
      },
      { once: true },
    );
  });
}
