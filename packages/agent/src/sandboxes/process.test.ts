import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { sandbox } from '@drover/protocol';
import { describe, expect, test } from 'vitest';
import type { ImageConfig } from '../images/images.ts';
import { mergeEnvironment, resolveMain } from './process.ts';
import { receiveSpec } from './received-spec.ts';

const image: ImageConfig = {
  entrypoint: ['/entry'],
  command: ['serve'],
  env: ['PATH=/opt/bin', 'HTTP_PROXY=image', 'A=image'],
  workdir: '/srv',
  user: 'app',
  stopSignal: 'SIGINT',
};

const resolve = (spec: MessageInitShape<typeof sandbox.SandboxSpecSchema>, config = image): ReturnType<typeof resolveMain> =>
  resolveMain(receiveSpec(create(sandbox.SandboxSpecSchema, { image: 'x', ...spec })), config, ['HTTP_PROXY=gateway', 'B=gateway']);

describe('the main process of a sandbox (image-spec, config.md)', () => {
  test.each<[string, MessageInitShape<typeof sandbox.SandboxSpecSchema>, readonly string[]]>([
    ['nothing given: the image’s Entrypoint and Cmd', {}, ['/entry', 'serve']],
    ['a command replaces Cmd', { command: ['ls', '-l'] }, ['/entry', 'ls', '-l']],
    ['an entrypoint replaces Entrypoint and drops Cmd', { setEntrypoint: true, entrypoint: ['/bin/sh'] }, ['/bin/sh']],
    ['an entrypoint and a command', { setEntrypoint: true, entrypoint: ['/bin/sh'], command: ['-c', 'x'] }, ['/bin/sh', '-c', 'x']],
    ['an emptied entrypoint and a command', { setEntrypoint: true, command: ['ls'] }, ['ls']],
  ])('%s', (_, spec, argv) => {
    expect(resolve(spec).argv).toEqual(argv);
  });

  test('no command anywhere is refused, with how to give one', () => {
    expect(() => resolve({}, { ...image, entrypoint: [], command: [] })).toThrowError(
      expect.objectContaining({ code: 'invalid-argument' }),
    );
  });

  test("the environment: the spec's values over the image's over the gateway's over the default", () => {
    expect(resolve({ env: [{ name: 'A', value: 'spec' }] }).env).toEqual(['PATH=/opt/bin', 'HTTP_PROXY=image', 'B=gateway', 'A=spec']);
    expect(resolve({}, { ...image, env: [] }).env[0]).toMatch(/^PATH=.*:\/usr\/bin/);
    expect(resolve({ terminal: true }).env).toContain('TERM=xterm-256color');
  });

  test('user, directory and stop signal are the image’s unless the spec says otherwise', () => {
    expect(resolve({})).toMatchObject({ user: 'app', workdir: '/srv', stopSignal: 2 });
    expect(resolve({ user: '1000:1000', workdir: '/tmp' })).toMatchObject({ user: '1000:1000', workdir: '/tmp' });
    expect(resolve({}, { ...image, workdir: '', stopSignal: '' })).toMatchObject({ workdir: '/', stopSignal: 15 });
  });

  test('a stop signal is read once, and one that does not exist is refused by its name', () => {
    expect(resolve({}, { ...image, stopSignal: 'RTMIN+3' }).stopSignal).toBe(37);
    expect(() => resolve({}, { ...image, stopSignal: 'SIGFOO' })).toThrow('the image x names an unknown STOPSIGNAL: "SIGFOO"');
  });

  test('one value a name, in the order in which the names came', () => {
    expect(mergeEnvironment(['A=1', 'B=2'], ['A=3'], ['C'])).toEqual(['A=3', 'B=2', 'C']);
  });
});
