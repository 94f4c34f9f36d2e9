import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { defaultStopGraceMs, maxMounts, maxStopGraceMs, maxTtlSeconds } from '../limits.ts';
import { parseSandboxSpec, parseStopGraceMs, type SandboxSpecInput } from './index.ts';

const empty: SandboxSpecInput = {
  image: 'host',
  command: [],
  entrypoint: [],
  setEntrypoint: false,
  env: [],
  workdir: '',
  user: '',
  hostname: '',
  allow: [],
  runtime: '',
  hostLabels: {},
  host: '',
  ttlSeconds: 0n,
  idleStopSeconds: 0n,
  mounts: [],
  stopGraceMs: 0,
  terminal: false,
  terminalRows: 0,
  terminalColumns: 0,
  stdin: false,
};
const resources = { cpuMillis: 0, memoryBytes: 0n, diskBytes: 0n, pids: 0, shmBytes: 0n };
const mount = (change: Partial<SandboxSpecInput['mounts'][number]>) => ({
  source: '/srv',
  volume: '',
  target: '/data',
  readOnly: false,
  ...change,
});

describe('a sandbox', () => {
  test('of which nothing is asked has the defaults', () => {
    expect(parseSandboxSpec(empty)).toEqual({
      image: { kind: 'host' },
      command: [],
      entrypoint: undefined,
      env: [],
      workdir: '',
      user: '',
      hostname: '',
      resources: { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, pids: 0, shmBytes: 0 },
      policy: { extends: [], rules: [] },
      runtime: undefined,
      hostLabels: {},
      host: '',
      ttlSeconds: 0,
      idleStopSeconds: 0,
      mounts: [],
      stopGraceMs: defaultStopGraceMs,
      terminal: undefined,
      stdin: false,
    });
  });

  test('keeps what is asked', () => {
    const input = {
      ...empty,
      setEntrypoint: true,
      user: '1000:adm',
      terminal: true,
      terminalRows: 50,
      runtime: 'oci',
      allow: ['example.org'],
      mounts: [mount({}), mount({ source: '', volume: 'cache', target: '/cache', readOnly: true })],
      stopGraceMs: maxStopGraceMs,
      ttlSeconds: BigInt(maxTtlSeconds),
      resources: { ...resources, memoryBytes: 2n ** 30n, shmBytes: 2n ** 30n },
    };
    expect(parseSandboxSpec(input)).toMatchObject({
      entrypoint: [],
      user: '1000:adm',
      terminal: { rows: 50, columns: 80 },
      runtime: 'oci',
      policy: { rules: [{ text: 'example.org' }] },
      mounts: input.mounts,
      stopGraceMs: maxStopGraceMs,
      ttlSeconds: maxTtlSeconds,
      resources: { memoryBytes: 2 ** 30, shmBytes: 2 ** 30 },
    });
  });

  const wrong: readonly (readonly [string, Partial<SandboxSpecInput>, RegExp])[] = [
    ['an argument with a NUL', { command: ['a\0'] }, /the command has an argument with a NUL/],
    ['too many arguments', { entrypoint: Array.from({ length: 4097 }, () => '') }, /the entrypoint has 4097 arguments/],
    ['a variable without a name', { env: [{ name: '', value: 'x' }] }, /"" cannot be the name/],
    ['a value with a NUL', { env: [{ name: 'A', value: 'x\0' }] }, /the value of "A" holds a NUL/],
    ['a relative working directory', { workdir: 'a' }, /"a" cannot be a working directory/],
    ['a user with a space', { user: 'a b' }, /"a b" cannot be a user/],
    ['a hostname with a dot', { hostname: 'a.b' }, /"a\.b" cannot be a hostname/],
    ['a runtime that does not exist', { runtime: 'lxc' }, /no runtime "lxc"/],
    ['a time to live without end', { ttlSeconds: BigInt(maxTtlSeconds) + 1n }, /a life of \d+ s is too long/],
    ['an idle time without end', { idleStopSeconds: 2n ** 63n }, /an idle time of \d+ s is too long/],
    ['a mount of two things', { mounts: [mount({ volume: 'a' })] }, /both a volume and a source/],
    ['a mount from a path that climbs', { mounts: [mount({ source: '/a/../b' })] }, /cannot be the source/],
    ['a mount on a relative path', { mounts: [mount({ target: 'a' })] }, /cannot be the target/],
    ['a mount on the root', { mounts: [mount({ target: '//' })] }, /nothing can be mounted on/],
    ['a mount on /proc', { mounts: [mount({ target: '//proc/1' })] }, /nothing can be mounted on/],
    ['too many mounts', { mounts: Array.from({ length: maxMounts + 1 }, () => mount({})) }, /there are 65 mounts/],
    ['memory for nothing', { resources: { ...resources, memoryBytes: 1n } }, /too few to start/],
    ['a disk without end', { resources: { ...resources, diskBytes: 2n ** 63n } }, /larger than any machine/],
    [
      '/dev/shm above its memory',
      { resources: { ...resources, memoryBytes: 2n ** 25n, shmBytes: 2n ** 26n } },
      /more than the memory limit/,
    ],
    ['too many CPUs', { resources: { ...resources, cpuMillis: 1_000_001 } }, /more than any machine/],
    ['too many processes', { resources: { ...resources, pids: 4_194_305 } }, /more than Linux can have/],
  ];
  test.each(wrong)('with %s is refused, with what to do', (_, change, message) => {
    expect(() => parseSandboxSpec({ ...empty, ...change })).toThrow(
      expect.objectContaining({
        code: 'invalid-argument',
        message: expect.stringMatching(message) as string,
        hint: expect.any(String) as string,
      }),
    );
  });

  test('no text in it makes the parser fail otherwise', () => {
    const text = fc.string({ unit: 'binary', maxLength: 40 });
    const texts = fc.record({ image: text, workdir: text, user: text, hostname: text, runtime: text, host: text, allow: fc.array(text) });
    fc.assert(
      fc.property(texts, text, (change, path) => {
        try {
          parseSandboxSpec({ ...empty, ...change, mounts: [mount({ source: path, target: path })] });
        } catch (error) {
          expect(error).toMatchObject({ code: expect.stringMatching(/^invalid-/) as string, hint: expect.any(String) as string });
        }
      }),
    );
  });

  test('its grace is never cut: a longer one is refused', () => {
    expect(parseStopGraceMs(maxStopGraceMs)).toBe(maxStopGraceMs);
    expect(() => parseStopGraceMs(maxStopGraceMs + 1)).toThrow('is too long');
  });
});
