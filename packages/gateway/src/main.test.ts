import { expect, test } from 'vitest';
import { daemons } from './daemons.ts';
import { parseDaemonArguments, parseGatewayArguments } from './main.ts';

test('the supervisor takes addresses to listen on and the user of its daemons', () => {
  const argv = ['--control-socket', '/s', '--listen', '10.0.0.1:3128', '--listen', '[::1]:0', '--user', '9:8'];
  expect(parseGatewayArguments(argv)).toEqual({
    controlSocket: '/s',
    proxies: [
      { host: '10.0.0.1', port: 3128 },
      { host: '::1', port: 0 },
    ],
    runAs: { uid: 9, gid: 8 },
  });
});

test.each([
  [['--listen', '10.0.0.1:3128']],
  [['--control-socket', '/s']],
  [['--control-socket', '/s', '--listen', 'name.example:3128']],
  [['--control-socket', '/s', '--listen', '10.0.0.1']],
  [['--control-socket', '/s', '--listen', '10.0.0.1:3128', '--user', 'root']],
  [['--control-socket', '/s', '--listen', '10.0.0.1:3128', '--user', '0:0']],
  [['--control-socket', '/s', '--unknown']],
])('gateway %j is refused', (argv) => {
  expect(() => parseGatewayArguments(argv)).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
});

test('a daemon is started by its name in the table', () => {
  expect(parseDaemonArguments(['egress', '--user', '9:8'])).toEqual({ daemon: daemons[0], runAs: { uid: 9, gid: 8 } });
});

test.each([[[]], [['git']], [['egress', 'egress']], [['egress', '--user', '0:0']]])('gateway-daemon %j is refused', (argv) => {
  expect(() => parseDaemonArguments(argv)).toThrow(expect.objectContaining({ code: 'invalid-argument' }));
});
