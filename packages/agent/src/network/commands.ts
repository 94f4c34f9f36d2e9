import { spawn } from 'node:child_process';
import { DroverError, errnoOf } from '@drover/foundation';
import { networkCommandMs, networkCommandOutputBytes } from '../limits.ts';
import { searchPath } from '../search-path.ts';

/** Debian's package of each program that the network needs. */
const packages: Readonly<Record<string, string>> = { ip: 'iproute2', nft: 'nftables', nsenter: 'util-linux' };

/**
 * Runs one of the system's network programs with `input` on its stdin.
 * @throws {DroverError} missing-component (says what to install), missing-privilege, timed-out, or internal with what it said
 */
export async function command(program: 'ip' | 'nft' | 'nsenter', args: readonly string[], input = ''): Promise<string> {
  return await new Promise<string>((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      timeout: networkCommandMs,
      killSignal: 'SIGKILL',
      env: { PATH: searchPath(), LC_ALL: 'C' },
    });
    const out: Buffer[] = [];
    let size = 0;
    let said = '';
    child.stdout.on('data', (data: Buffer) => {
      size += data.length;
      if (size > networkCommandOutputBytes) child.kill('SIGKILL');
      else out.push(data);
    });
    child.stderr.on('data', (data: Buffer) => {
      if (said.length < 2000) said += data.toString();
    });
    // A program that ends before it has read its input says why by its exit code.
    child.stdin.on('error', () => undefined);
    child.once('error', (error) => reject(errnoOf(error) === 'ENOENT' ? missing(program) : DroverError.from(error)));
    child.once('close', (code, signal) => {
      if (code === 0) resolve(Buffer.concat(out).toString());
      else reject(failed(program, args, code, signal, said.trim().slice(0, 500)));
    });
    child.stdin.end(input);
  });
}

function missing(program: string): DroverError {
  return new DroverError('missing-component', `\`${program}\` is not installed; sandboxes have no network without it`, {
    hint: `apt-get install ${packages[program]}`,
  });
}

function failed(program: string, args: readonly string[], code: number | null, signal: string | null, said: string): DroverError {
  const what = `${program} ${args.join(' ')}`;
  if (signal === 'SIGKILL') return new DroverError('timed-out', `\`${what}\` did not end in time or said too much`);
  if (/permitted|permission/i.test(said)) {
    return new DroverError('missing-privilege', `\`${what}\`: ${said}`, {
      hint: 'run the agent as root (CAP_NET_ADMIN and CAP_SYS_ADMIN)',
    });
  }
  return new DroverError('internal', `\`${what}\` failed (${code}): ${said}`, { hint: 'see `drover doctor`' });
}
