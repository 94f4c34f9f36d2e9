import { describe, expect, test } from 'vitest';
import { DroverError } from '@drover/foundation';
import { parseCount, parseMountFlag } from '@drover/spec';
import { parsePlace } from './commands/sandbox/cp.ts';
import { cannotListen } from './commands/sandbox/forward.ts';
import { tokenLifeSeconds } from './commands/host/host.ts';
import { parseServer } from './context/context.ts';
import { parseAllow, parseEnv, parseForward } from './parse.ts';
import { parseListen } from './settings/listen.ts';

describe('R-2: flags become values, or one sentence', () => {
  test('--env takes NAME=value, and NAME from the caller, and leaves out what the caller has not', () => {
    expect(parseEnv(['A=1', 'B', 'C', 'D=x=y', 'E='], { B: 'mine' })).toEqual({ A: '1', B: 'mine', D: 'x=y', E: '' });
    expect(parseEnv(['A=1', 'A=2'], {})).toEqual({ A: '2' });
  });

  test('--volume is SOURCE:TARGET[:ro]: a volume, or a directory, which is the caller’s when it is relative', () => {
    expect(parseMountFlag('/a:/b', process.cwd())).toEqual({ source: '/a', volume: '', target: '/b', readOnly: false });
    expect(parseMountFlag('./x:/b:ro', process.cwd())).toEqual({ source: `${process.cwd()}/x`, volume: '', target: '/b', readOnly: true });
    expect(parseMountFlag('x:/b:ro', process.cwd())).toEqual({ source: '', volume: 'x', target: '/b', readOnly: true });
    expect(() => parseMountFlag('No Name:/b', process.cwd())).toThrow(expect.objectContaining({ code: 'invalid-name' }));
  });

  test('R-16: --allow is a host, a host with a star before it, an address or a network, each with a port or not', async () => {
    const texts = ['example.com', '*.example.com', 'example.com:8080', '10.0.0.1:80', '10.0.0.0/8', '2001:db8::1', '[fd00::/8]:443'];
    expect(await parseAllow(texts)).toEqual(texts);
    expect(await parseAllow(['*.Example.com'])).toEqual(['*.example.com']);
    for (const text of ['https://example.com', 'example.com/path', 'example.com:70000', 'a.*.example.com', '*', '10.0.0.0/33']) {
      await expect(parseAllow([text])).rejects.toMatchObject({ code: 'invalid-argument', hint: expect.any(String) as string });
    }
  });

  test('forward takes LOCAL:REMOTE, one port for both, and an address before them', () => {
    expect(parseForward('8080:80')).toEqual({ address: '127.0.0.1', local: 8080, remote: 80 });
    expect(parseForward('80')).toEqual({ address: '127.0.0.1', local: 80, remote: 80 });
    expect(parseForward('0:80')).toEqual({ address: '127.0.0.1', local: 0, remote: 80 });
    expect(parseForward('0.0.0.0:8080:80')).toEqual({ address: '0.0.0.0', local: 8080, remote: 80 });
    expect(parseForward('[::1]:8080:80')).toEqual({ address: '::1', local: 8080, remote: 80 });
  });

  test('a port that is taken says which, and what to write instead', () => {
    const taken = Object.assign(new Error('listen EADDRINUSE'), { code: 'EADDRINUSE' });
    expect(cannotListen(taken, '127.0.0.1', 8080, 80)).toMatchObject({
      code: 'port-in-use',
      message: '127.0.0.1:8080 is in use by another program',
      hint: 'name another local port, or 0:80 for any free port',
    });
  });

  test('cp knows a sandbox by NAME: before a path, and a path here by its beginning', () => {
    expect(parsePlace('box:/etc/passwd')).toEqual({ sandbox: 'box', path: '/etc/passwd' });
    expect(parsePlace('team/box:file')).toEqual({ sandbox: 'team/box', path: 'file' });
    expect(parsePlace('box:')).toEqual({ sandbox: 'box', path: '.' });
    expect(parsePlace('./box:file')).toEqual({ sandbox: undefined, path: './box:file' });
    expect(parsePlace('-')).toEqual({ sandbox: undefined, path: '-' });
  });

  test('--listen takes HOST:PORT, [IPv6]:PORT, :PORT and PORT', () => {
    expect(parseListen('127.0.0.1:7443')).toEqual({ host: '127.0.0.1', port: 7443 });
    expect(parseListen('[::1]:1')).toEqual({ host: '::1', port: 1 });
    expect(parseListen(':1')).toEqual({ host: '0.0.0.0', port: 1 });
    expect(parseListen('0')).toEqual({ host: '127.0.0.1', port: 0 });
  });

  test('--server takes a host, a host with a port, or a URL', () => {
    expect(parseServer('a.example')).toBe('https://a.example:7443');
    expect(parseServer('a.example:443')).toBe('https://a.example:443');
    expect(parseServer('https://[::1]:9/')).toBe('https://[::1]:9');
  });

  test.each([
    ['--env', () => parseEnv(['1A=x'], {})],
    ['--env', () => parseEnv(['export A=x'], {})],
    ['--env', () => parseEnv(['=x'], {})],
    ['--ttl', () => tokenLifeSeconds('0s')],
    ['--volume', () => parseMountFlag('/a', process.cwd())],
    ['--volume', () => parseMountFlag('/a:b', process.cwd())],
    ['--volume', () => parseMountFlag('/a:/b:rx', process.cwd())],
    ['--volume', () => parseMountFlag('/a:/b:ro:x', process.cwd())],
    ['--pids', () => parseCount('--pids', '0', 10)],
    ['--pids', () => parseCount('--pids', '1e3', 10_000)],
    ['forward', () => parseForward('80:70000')],
    ['forward', () => parseForward('a:b')],
    ['--listen', () => parseListen('host')],
    ['--listen', () => parseListen('a:70000')],
    ['--server', () => parseServer('http://plain')],
    ['--server', () => parseServer('https://user@host')],
    ['--server', () => parseServer('')],
  ])('%s refuses what it cannot mean: %s', (_, parse) => {
    expect(parse).toThrow(DroverError);
    try {
      parse();
    } catch (error) {
      expect((error as DroverError).exitCode).toBe(2);
      expect((error as DroverError).message).not.toMatch(/undefined|\n/);
    }
  });
});
