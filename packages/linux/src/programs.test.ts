import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readdir, readlink } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import { launch, runProgram, type Launched, type LaunchOptions } from './index.ts';

const env = { PATH: '/usr/bin:/bin' };

describe('a program', () => {
  const shell = async (script: string, options: LaunchOptions = {}): Promise<Launched> =>
    await launch('/bin/sh', ['-c', script, 'sh', 'two words', '', 'ä'], { env, ...options });
  const text = async (stream: Launched['stdout']): Promise<string> => {
    let received = '';
    stream?.setEncoding('utf8').on('data', (data: string) => (received += data));
    await once(stream ?? process, 'close');
    return received;
  };

  test('has its arguments and its environment, and no others', async () => {
    const child = await shell('printf "%s|" "$@"; exec env', { streams: ['stdout'], env: { NAME: 'a value' } });
    const [output, code] = await Promise.all([text(child.stdout), child.ended]);
    expect(code).toBe(0);
    const [args, variables = ''] = output.split('||ä|');
    expect(args).toBe('two words');
    expect(
      variables
        .trim()
        .split('\n')
        .filter((line) => !/^(?:PWD|SHLVL|_|OLDPWD)=/.test(line)),
    ).toEqual(['NAME=a value']);
  });

  test('reports its exit code, and null for a signal', async () => {
    expect(await (await shell('exit 7')).ended).toBe(7);
    expect(await (await shell('kill -9 $$')).ended).toBeNull();
    const sleeper = await shell('exec sleep 60');
    sleeper.kill();
    expect(await sleeper.ended).toBeNull();
    // Its pid may belong to another process now.
    sleeper.kill();
  });

  test('has /dev/null for streams that are not connected, and inherits no open file', async () => {
    const file = await open('/etc/hostname');
    const child = await shell('exec ls -l /proc/self/fd', { streams: ['stdout'] });
    const output = await text(child.stdout);
    await file.close();
    const descriptors = [...output.matchAll(/ (\d+) -> (\S+)/g)].map(([, fd, target]) => `${fd} ${target?.replace(/\d+/, 'N')}`);
    expect(descriptors.slice(0, 3)).toEqual(['0 /dev/null', expect.stringMatching(/^1 (?:pipe|socket):/), '2 /dev/null']);
    expect(output).not.toContain('/etc/hostname');
  });

  test('has its streams connected to this process', async () => {
    const child = await shell('cat; echo error >&2', { streams: ['stdin', 'stdout', 'stderr'] });
    child.stdin?.end('through');
    expect(await Promise.all([text(child.stdout), text(child.stderr), child.ended])).toEqual(['through', 'error\n', 0]);
  });

  test('sees the end of its channel when it is closed here', async () => {
    const child = await shell('cat <&3; exit 3', { channel: true });
    child.channel?.destroy();
    expect(await child.ended).toBe(3);
  });

  test('has no signal blocked or ignored, whatever this process does', async () => {
    const child = await shell('exec cat /proc/self/status', { streams: ['stdout'] });
    const status = await text(child.stdout);
    expect(/^SigBlk:\s+0+$/m.test(status)).toBe(true);
    // All but the two that the C library reserves.
    expect(Number(`0x${/^SigIgn:\s+(\S+)$/m.exec(status)?.[1]}`) & ~0x180000000 & 0x7fffffff).toBe(0);
  });

  test('that does not exist or is not executable is an error with its code', async () => {
    await expect(launch('/nowhere/program', [], { env })).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(launch('/etc/passwd', [], { env })).rejects.toMatchObject({ code: 'EACCES' });
  });

  test('reports its own code among many others and children of Node, and leaves no descriptor and no zombie', async () => {
    const descriptors = async (): Promise<number> => (await readdir('/proc/self/fd')).length;
    const before = await descriptors();
    const codes = Array.from({ length: 20 }, (_value, code) => code);
    const own = codes.map(async (code) => (await once(spawn('/bin/sh', ['-c', `exit ${code}`]), 'exit'))[0] as number);
    const children = await Promise.all(
      codes.map(async (code) => await shell(`sleep 0.0${code % 3}; exit ${code}`, { streams: ['stdout'] })),
    );
    const closed = children.map(async ({ stdout }) => await text(stdout));
    expect(await Promise.all(children.map(async ({ ended }) => await ended))).toEqual(codes);
    expect(await Promise.all(own)).toEqual(codes);
    await Promise.all(closed);
    for (const { pid } of children) await expect(readlink(`/proc/${pid}/exe`)).rejects.toThrow('ENOENT');
    expect(await descriptors()).toBeLessThanOrEqual(before);
  });
});

describe('running a program to its end', () => {
  const limits = { timeoutMs: 10_000, maxOutputBytes: 1_000_000 };

  test('returns its exit code and its output', async () => {
    const input = 'x'.repeat(500_000);
    const finished = await runProgram('sh', ['-c', 'cat; echo oh >&2; exit 4'], { ...limits, input });
    expect(finished).toEqual({ code: 4, stdout: input, stderr: 'oh\n' });
  });

  test('kills a program that takes too long or prints too much', async () => {
    expect((await runProgram('sleep', ['60'], { ...limits, timeoutMs: 20 })).code).toBeNull();
    expect((await runProgram('yes', [], { ...limits, maxOutputBytes: 1000 })).code).toBeNull();
  });

  test('looks for the program in the PATH of its environment', async () => {
    await expect(runProgram('sh', ['-c', ':'], { ...limits, env: { PATH: '/nowhere:/proc' } })).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('accepts a program that reads no input', async () => {
    expect((await runProgram('true', [], { ...limits, input: 'y'.repeat(200_000) })).code).toBe(0);
  });
});
