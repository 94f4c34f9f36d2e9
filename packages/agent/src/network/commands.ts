import { DroverError, errnoOf } from '@drover/foundation';
import { runProgram, searchPath } from '@drover/linux';
import { networkCommandMs, networkCommandOutputBytes } from '../limits.ts';

/** Debian's package of each program that the network needs. */
const packages: Readonly<Record<string, string>> = { ip: 'iproute2', nft: 'nftables', nsenter: 'util-linux' };

/**
 * Runs one of the system's network programs with `input` on its stdin.
 * @throws {DroverError} missing-component, missing-privilege, timed-out, internal with the program's output
 */
export async function command(program: 'ip' | 'nft' | 'nsenter', args: readonly string[], input = ''): Promise<string> {
  const options = { input, timeoutMs: networkCommandMs, maxOutputBytes: networkCommandOutputBytes };
  try {
    const { code, stdout, stderr } = await runProgram(program, args, { ...options, env: { PATH: searchPath(), LC_ALL: 'C' } });
    if (code === 0) return stdout;
    throw failed(program, args, code, stderr.trim().slice(0, 500));
  } catch (error) {
    throw errnoOf(error) === 'ENOENT' ? missing(program) : DroverError.from(error);
  }
}

function missing(program: string): DroverError {
  return new DroverError('missing-component', `\`${program}\` is not installed; sandboxes have no network without it`, {
    hint: `apt-get install ${packages[program]}`,
  });
}

function failed(program: string, args: readonly string[], code: number | null, said: string): DroverError {
  const what = `${program} ${args.join(' ')}`;
  if (code === null) return new DroverError('timed-out', `\`${what}\` did not end in time or said too much`);
  if (/permitted|permission/i.test(said)) {
    return new DroverError('missing-privilege', `\`${what}\`: ${said}`, {
      hint: 'run the agent as root (CAP_NET_ADMIN and CAP_SYS_ADMIN)',
    });
  }
  return new DroverError('internal', `\`${what}\` failed (${code}): ${said}`, { hint: 'see `drover doctor`' });
}
