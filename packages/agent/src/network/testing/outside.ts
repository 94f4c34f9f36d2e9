import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A web server at a private address that is not the host's: no rule opens the host (G-16). */
export interface Outside extends AsyncDisposable {
  readonly address: string;
  readonly port: number;
  /** `address:port`. */
  readonly origin: string;
}

const server = (address: string): string => `
  const server = require('node:http').createServer((request, response) => {
    if (request.url !== '/endless') return response.end('hello ' + request.url + '\\n');
    const more = setInterval(() => response.write('another line\\n'), 2);
    response.once('close', () => clearInterval(more));
  });
  server.listen(0, '${address}', () => console.log(server.address().port));
  process.stdin.resume().once('end', () => process.exit());`;

/**
 * A namespace with one cable to this machine, and the server in it.
 * @param prefix the first three bytes of the cable's network, which no other test uses at the same time
 */
export async function startOutside(prefix: string): Promise<Outside> {
  const namespace = `out-${process.pid}`;
  const address = `${prefix}.2`;
  const remove = async (): Promise<void> => {
    await run('ip', ['link', 'delete', namespace]).catch(() => undefined);
    await run('ip', ['netns', 'delete', namespace]).catch(() => undefined);
  };
  await run('ip', ['netns', 'add', namespace]);
  try {
    await run('ip', ['link', 'add', namespace, 'type', 'veth', 'peer', 'name', 'uplink', 'netns', namespace]);
    await run('ip', ['address', 'add', `${prefix}.1/30`, 'dev', namespace]);
    await run('ip', ['link', 'set', namespace, 'up']);
    await run('ip', ['-n', namespace, 'address', 'add', `${address}/30`, 'dev', 'uplink']);
    await run('ip', ['-n', namespace, 'link', 'set', 'uplink', 'up']);
    const argv = [`--net=/run/netns/${namespace}`, '--', process.execPath, '-e', server(address)];
    const child = spawn('nsenter', argv, { stdio: ['pipe', 'pipe', 'inherit'] });
    const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
    return {
      address,
      port: Number(line),
      origin: `${address}:${line}`,
      async [Symbol.asyncDispose]() {
        child.kill('SIGKILL');
        await once(child, 'close');
        await remove();
      },
    };
  } catch (error) {
    await remove();
    throw error;
  }
}
