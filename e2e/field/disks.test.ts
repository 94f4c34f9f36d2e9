import { once } from 'node:events';
import { mkdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, readyStandbys, TestDrover, tool } from '../harness/index.ts';

let drover: TestDrover;
let work: string;

beforeAll(async () => {
  work = await tool('mktemp', '-d', '/tmp/e2e-field-disks-XXXXXX');
  drover = await TestDrover.start(['--pool', '10.235.64.0/18', '--standbys', '1', '--allow-mount', work]);
});

afterAll(async () => {
  await drover?.[Symbol.asyncDispose]();
  await rm(work, { recursive: true, force: true });
});

const mebibyte = 1024 ** 2;

interface Bound {
  /** The capacity of the file system. */
  readonly bytes: number;
  readonly files: number;
}

/** Every writable mount of a sandbox with `--disk 50m` and a secret in a file. */
const bounds: Readonly<Record<string, Bound>> = {
  '/': { bytes: 50 * mebibyte, files: 13_000 },
  '/.drover/run': { bytes: 32 * mebibyte, files: 8_300 },
  '/dev': { bytes: 64 * mebibyte, files: 16_384 },
  '/dev/shm': { bytes: 64 * mebibyte, files: 16_384 },
  '/sys': { bytes: 64 * 1024, files: 64 },
  '/run/secrets': { bytes: mebibyte, files: 1024 },
};

/** File systems without data. The named test covers the bound of their other contents. */
const withoutData: Readonly<Record<string, string>> = {
  proc: 'files of the kernel',
  devpts: 'terminals',
  mqueue: 'message queues',
};

/** Runs in the sandbox: prints each writable mount with its size, without mounts of single devices. */
const listMounts = `
import json, os, stat
found = {}
for line in open("/proc/self/mountinfo"):
    before, after = line.rstrip("\\n").split(" - ")
    point, options = before.split(" ")[4], before.split(" ")[5].split(",")
    kind, _, over = after.split(" ")[:3]
    # The last mount on a path hides the others.
    found.pop(point, None)
    if "ro" in options or "ro" in over.split(","): continue
    if stat.S_ISCHR(os.stat(point).st_mode): continue
    size = os.statvfs(point)
    found[point] = [point, kind, size.f_blocks * size.f_frsize]
print(json.dumps(list(found.values())))
`;

/** Fills a directory with bytes, then with empty files, until the kernel refuses more. Prints both amounts and both errors. */
const fill = `
import errno, json, os, shutil, sys
top = sys.argv[1].rstrip("/") + "/filled"
limit, most = int(sys.argv[2]) * 2, int(sys.argv[3]) * 2
os.mkdir(top)
taken, why = 0, []
with open(top + "/bytes", "wb", buffering=0) as out:
    block = b"x" * min(1 << 20, limit)
    try:
        while taken < limit: taken += out.write(block)
        why.append("no bound")
    except OSError as e: why.append(errno.errorcode[e.errno])
os.unlink(top + "/bytes")
files = 0
try:
    while files < most:
        os.close(os.open("%s/%d" % (top, files), os.O_CREAT | os.O_EXCL, 0o600)); files += 1
    why.append("no bound")
except OSError as e: why.append(errno.errorcode[e.errno])
shutil.rmtree(top)
print(json.dumps([taken, files, why]))
`;

async function python<T>(sandbox: string, script: string, ...args: readonly string[]): Promise<T> {
  const { code, stdout, stderr } = await drover.exec(sandbox, ['/usr/bin/python3', '-c', script, ...args]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout) as T;
}

describe.each([
  ['that was a standby', 'ahead', Object.keys(bounds)],
  // Only these two are mounted differently without a standby.
  ['that was made without a standby', 'plain', ['/.drover/run', '/run/secrets']],
] as const)('R-10: the writable mounts of a sandbox %s are bounded', (_, name, points) => {
  beforeAll(async () => {
    if (name === 'ahead') await eventually('a standby is ready', async () => (await readyStandbys(drover.data)) === 1);
    const flags = ['--disk', '50m', '--memory', '500m', '--secret-file', 'KEY=-'];
    const { code, stderr } = await drover.run(['run', '-d', '--name', name, ...flags, 'host', '--', 'sleep', '1d'], { input: 'value' });
    expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  });
  afterAll(async () => await drover.remove(name));

  test('every writable mount is in the table of bounds', async () => {
    const mounts = await python<[string, string, number][]>(name, listMounts);
    expect(mounts.map(([point]) => point)).toEqual(expect.arrayContaining(Object.keys(bounds)));
    // The image `host` has directories of the host under writable layers on the root's disk.
    const onTheDisk = ([, kind, bytes]: readonly [string, string, number]): boolean => kind === 'overlay' && bytes <= 50 * mebibyte;
    expect(mounts.filter((mount) => !(mount[0] in bounds) && !(mount[1] in withoutData) && !onTheDisk(mount))).toEqual([]);
  });

  test.each([...points])('%s ends with ENOSPC, in bytes and in files', async (point) => {
    const bound = bounds[point] as Bound;
    const [bytes, files, why] = await python<[number, number, string[]]>(name, fill, point, String(bound.bytes), String(bound.files));
    expect(why).toEqual(['ENOSPC', 'ENOSPC']);
    expect(bytes).toBeLessThanOrEqual(bound.bytes);
    expect(files).toBeLessThanOrEqual(bound.files);
  });

  test('terminals, message queues and their bytes are bounded', async () => {
    const script = `
import ctypes, errno, json, os
held, why = [], []
try:
    while len(held) < 1000: held.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
except OSError as e: why.append(errno.errorcode[e.errno])
terminals = len(held)
for fd in held: os.close(fd)
libc = ctypes.CDLL("libc.so.6", use_errno=True)
queues = 0
while queues < 1000 and libc.mq_open(b"/q%d" % queues, os.O_CREAT | os.O_RDWR, 0o600, None) >= 0: queues += 1
why.append(errno.errorcode[ctypes.get_errno()])
for n in range(queues): libc.mq_unlink(b"/q%d" % n)
print(json.dumps([terminals, queues, why]))
`;
    const [terminals, queues, why] = await python<[number, number, string[]]>(name, script);
    expect(why).toEqual(['ENOSPC', 'EMFILE']);
    expect(terminals).toBeLessThanOrEqual(256);
    expect(queues).toBeLessThanOrEqual(256);
  });
});

describe('R-10: a sandbox that has exhausted a resource', () => {
  const name = 'full';
  const message = async (): Promise<string> => (await drover.sandbox<{ message?: string }>(name)).message ?? '';
  /** Programs of the sandbox that run until the kernel refuses more. */
  const uses = {
    disk: 'open("/filled", "wb").write(bytes(1 << 26))',
    inodes: 'os.mkdir("/many"); [open("/many/%d" % n, "w").close() for n in range(100000)]',
    pids: '[held.append(subprocess.Popen(["sleep", "1d"])) for n in range(1000)]',
  };
  const free = { disk: 'rm /filled', inodes: 'rm -r /many', pids: '' };

  beforeAll(async () => {
    await drover.begin(name, ['sleep', '1d'], { resources: { diskBytes: BigInt(24 * mebibyte), pids: 40 } });
  });
  afterAll(async () => await drover.remove(name));

  test.each([
    ['disk', /its own disk of \S+ \S+ is full: .*--disk/],
    ['inodes', /its own disk has no inode left .*--disk/],
    ['pids', /its limit of 40 processes and threads: .*--pids/],
  ] as const)('%s: get, explain and the events report it and the next step, until some is free again', async (resource, sentence) => {
    const script = `
import os, subprocess, sys
held = []
try: ${uses[resource]}
except OSError as e: print(e.strerror, flush=True)
sys.stdin.read()
for process in held: process.kill()
`;
    const holding = drover.spawn(['exec', '-i', name, '--', '/usr/bin/python3', '-c', script]);
    await eventually(`get reports that ${resource} are exhausted`, async () => sentence.test(await message()), 30_000, message);
    const [shown, explained, events] = await Promise.all([
      drover.run(['sandbox', 'get', name]),
      drover.run(['sandbox', 'explain', name]),
      drover.run(['events', '--since', '0', '--subject', name]),
    ]);
    for (const { stdout } of [shown, explained, events]) expect(stdout).toMatch(sentence);
    holding.stdin.end();
    await holding;
    if (free[resource] !== '') await drover.exec(name, ['sh', '-c', free[resource]]);
    await eventually('get no longer reports it', async () => (await message()) === '', 30_000, message);
  });
});

describe('R-18: a named volume', () => {
  const size = 32 * mebibyte;
  const succeeds = async (...args: readonly string[]): Promise<string> => {
    const { code, stdout, stderr } = await drover.run(args);
    expect({ args, code, stderr: code === 0 ? '' : stderr }).toEqual({ args, code: 0, stderr: '' });
    return stdout;
  };
  const image = (): string => join(drover.data, 'host', 'volumes', 'images', 'keep.img');
  const mountPoint = (): string => join(drover.data, 'host', 'volumes', 'mounts', 'keep');
  const volume = async (): Promise<Record<string, unknown>> => await drover.json(['volume', 'get', 'keep']);

  test("is created on a host, and its size bounds every user's writes", async () => {
    expect(await succeeds('volume', 'create', 'keep', '--size', '32m')).toBe('keep\n');
    expect((await drover.run(['volume', 'create', 'keep', '--size', '1g'])).stderr).toMatch(/there is a volume keep already/);
    await succeeds('run', '-d', '--name', 'writer', '--user', '1000:1000', '--volume', 'keep:/data', 'host', '--', 'sleep', '1d');
    const [bytes, files, why] = await python<[number, number, string[]]>('writer', fill, '/data', String(size), '9000');
    expect(why).toEqual(['ENOSPC', 'ENOSPC']);
    expect(bytes).toBeLessThanOrEqual(size);
    expect(files).toBeLessThanOrEqual(8_300);
    expect((await drover.exec('writer', ['sh', '-c', 'echo kept > /data/file; ls /data'])).stdout).toBe('file\n');
    const shown = await volume();
    expect(shown).toMatchObject({ name: 'keep', state: 'ready', sandboxes: ['writer'] });
    expect(Number(shown['sizeBytes'])).toBe(size);
  });

  test('survives a restart of the agent, a boot of the host and a restart of its sandbox', async () => {
    const agent = await drover.pidOf('agent');
    process.kill(agent, 'SIGKILL');
    await eventually('another agent runs', async () => (await drover.pidOf('agent')) !== agent);
    await eventually('the host is ready', async () => (await drover.hosts<{ state: string }>())[0]?.state === 'ready');
    expect((await drover.exec('writer', ['cat', '/data/file'])).stdout).toBe('kept\n');
    await drover.stop('writer', 1);
    // After a boot no volume is mounted.
    await tool('umount', mountPoint());
    await drover.restart('writer');
    expect((await drover.exec('writer', ['cat', '/data/file'])).stdout).toBe('kept\n');
  });

  test('cannot be removed while a sandbox has it, running or not, and the refusal names the sandbox', async () => {
    for (const _ of ['running', 'stopped']) {
      const { code, stderr } = await drover.run(['volume', 'rm', 'keep']);
      expect({ code, stderr }).toEqual({
        code: 4,
        stderr: 'drover: the volume keep is used by writer\n  hint: remove what uses it first: drover sandbox rm writer\n',
      });
      await drover.stop('writer', 1);
    }
    await drover.remove('writer');
    const script = 'cat /data/file; touch /data/x 2>/dev/null || echo read-only';
    const reader = await succeeds('run', '--rm', '-n', '--volume', 'keep:/data:ro', 'host', '--', 'sh', '-c', script);
    expect(reader).toBe('kept\nread-only\n');
  });

  test('decides the placement of its sandbox, and each problem with it is one sentence', async () => {
    const run = async (...flags: readonly string[]): Promise<string> =>
      (await drover.run(['run', '--rm', '-n', ...flags, 'host', '--', 'true'])).stderr;
    expect(await run('--volume', 'nothing:/data')).toMatch(/^drover: there is no volume nothing\n {2}hint: .*\n$/);
    expect(await run('--volume', 'keep:/data', '--host', 'elsewhere')).toMatch(/^drover: .*elsewhere.*\n {2}hint: .*\n$/);
    expect((await drover.run(['volume', 'create', 'tiny', '--size', '1k'])).stderr).toMatch(
      /^drover: --size "1k" is too small\n {2}hint: give at least 16\.0 MiB\n$/,
    );
  });

  test('leaves nothing after its removal', async () => {
    expect(await succeeds('volume', 'ls')).toMatch(/^NAME +HOST +SIZE +USED +STATE[^\n]*\nkeep /);
    // One name that does not exist does not stop the others, and several names are an array.
    const removal = await drover.run(['-o', 'json', 'volume', 'rm', 'nosuch', 'keep']);
    expect([removal.code, JSON.parse(removal.stdout)]).toEqual([3, [{ name: 'keep' }]]);
    expect(await succeeds('volume', 'ls')).toBe('');
    expect(await tool('losetup', '-j', image())).toBe('');
    await expect(stat(image())).rejects.toThrow('ENOENT');
    await expect(stat(mountPoint())).rejects.toThrow('ENOENT');
  });
});

describe('a path of the host that hangs', () => {
  // Replies to the kernel's first message only. Every process that touches the mount blocks, even with a pending SIGKILL.
  const server = `
import ctypes, os, struct, sys
libc = ctypes.CDLL("libc.so.6", use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % fd
if libc.mount(b"hang", sys.argv[1].encode(), b"fuse.hang", 0, options) != 0: sys.exit(os.strerror(ctypes.get_errno()))
request = os.read(fd, 1 << 17)
init = struct.pack("<IIIIHHI", 7, 31, 65536, 0, 16, 16, 4096) + struct.pack("<IHH", 1, 0, 0) + bytes(32)
os.write(fd, struct.pack("<IiQ", 16 + len(init), 0, struct.unpack("<Q", request[8:16])[0]) + init)
print("mounted", flush=True)
while True: os.read(fd, 1 << 17)
`;
  let hang: string;
  let serving: ReturnType<typeof startServer>;
  const startServer = () => execa('/usr/bin/python3', ['-c', server, hang], { reject: false, stdin: 'ignore' });
  const names = Array.from({ length: 5 }, (_, index) => `hung-${index}`);

  beforeAll(async () => {
    hang = join(work, 'hang');
    await mkdir(hang);
    serving = startServer();
    await once(serving.stdout, 'data');
  });
  afterAll(async () => {
    serving.kill('SIGKILL');
    await serving;
    await tool('umount', '-l', hang);
  });

  test('is named by each operation that needs it, and affects neither its host nor the other sandboxes', { timeout: 90_000 }, async () => {
    await drover.begin('well', ['sleep', '1d']);
    const mounts = [{ source: `${hang}/data`, target: '/data' }];
    await Promise.all(names.map(async (name) => await drover.create(name, ['true'], { mounts })));
    await drover.create('hung-image', ['true'], { image: `dir:${hang}/root` });
    await drover.create('hung-archive', ['true'], { image: `oci-archive:${hang}/archive.tar` });
    for (const [name, path] of [...names.map((each) => [each, 'data']), ['hung-image', 'root'], ['hung-archive', 'archive.tar']]) {
      let seen: unknown;
      const named = async (): Promise<boolean> => {
        const { state, message = '' } = await drover.sandbox<{ state: string; message?: string }>(name as string);
        const [host] = await drover.hosts<{ state: string }>();
        seen = { host: host?.state, state, message };
        return message.includes(`${hang}/${path} on the host does not respond`);
      };
      await eventually(`${name} names the path`, named, 30_000, () => seen);
    }
    // While all of them hang, for longer than a host may be silent.
    expect(await drover.hosts()).toMatchObject([{ state: 'ready' }]);
    expect((await drover.exec('well', ['echo', 'well'])).stdout).toBe('well\n');
    await drover.begin('later', ['sleep', '1d']);
    expect((await drover.sandbox<{ state: string }>('well')).state).toBe('running');
    await drover.remove(...names, 'hung-image', 'hung-archive', 'well', 'later');
  });
});
