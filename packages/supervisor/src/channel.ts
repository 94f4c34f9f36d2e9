import { once } from 'node:events';
import { Socket } from 'node:net';
import type { HealthConnection } from './health.ts';

/** The descriptor of the channel to the supervisor, in the environment of a daemon. */
export const channelVariable = 'DROVER_SUPERVISOR_FD';

/**
 * The daemon's end of the channel to its supervisor. It responds to health probes from this process's event loop, and the returned signal
 * aborts when the supervisor has ended, however it ended. Without a supervisor the signal never aborts.
 * @param degraded returns the problem that this process has to report of itself, if any (S-7)
 */
export function connectToSupervisor(env: NodeJS.ProcessEnv, degraded: () => string | undefined = () => undefined): AbortSignal {
  const ended = new AbortController();
  const text = env[channelVariable];
  delete env[channelVariable];
  if (text === undefined) return ended.signal;
  const channel = new Socket({ fd: Number(text), readable: true, writable: true });
  channel.unref();
  channel.on('error', () => undefined);
  channel.on('data', (data: Buffer) => {
    for (const byte of data) if (byte === probe) channel.write(`${(degraded() ?? '').replaceAll('\n', ' ')}\n`);
  });
  channel.on('close', () => ended.abort(new Error('the supervisor of this process has ended')));
  return ended.signal;
}

/** One newline asks for one line: empty when the daemon is well, else the problem that it reports. */
const probe = 10;

/** The supervisor's end as a connection for health probes. The channel itself stays open: its end would tell the daemon to end. */
export function channelHealth(channel: Socket): HealthConnection {
  return {
    ping: async (signal) => {
      let line = '';
      channel.write('\n');
      while (!line.includes('\n')) {
        const [data] = (await once(channel, 'data', { signal })) as [Buffer];
        line += data.toString('utf8');
      }
      const degraded = line.slice(0, line.indexOf('\n'));
      return degraded === '' ? undefined : degraded;
    },
    close: () => undefined,
  };
}
