import { rm } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { eventually, readyStandbys, TestDrover, tool } from '../harness/index.ts';

let drover: TestDrover;
let work: string;

beforeAll(async () => {
  work = await tool('mktemp', '-d', '/tmp/e2e-field-disks-XXXXXX');
  drover = await TestDrover.start(['--pool', '10.235.64.0/18', '--standbys', '1']);
});

afterAll(async () => {
  await drover?.[Symbol.asyncDispose]();
  await rm(work, { recursive: true, force: true });
});

const mebibyte = 1024 ** 2;

interface Bound {
  /** What the file system may hold. */
  readonly bytes: number;
  readonly files: number;
}

/** Every mount that a sandbox with `--disk 50m` and a secret in a file can write to. */
const bounds: Readonly<Record<string, Bound>> = {
  '/': { bytes: 50 * mebibyte, files: 13_000 },
  '/.drover/run': { bytes: 32 * mebibyte, files: 8_300 },
  '/dev': { bytes: 64 * mebibyte, files: 16_384 },
  '/dev/shm': { bytes: 64 * mebibyte, files: 16_384 },
  '/sys': { bytes: 64 * 1024, files: 64 },
  '/run/secrets': { bytes: mebibyte, files: 1024 },
};

/** File systems that hold no data; what they do hold is bounded by the test named. */
const withoutData: Readonly<Record<string, string>> = {
  proc: 'files of the kernel',
  devpts: 'terminals',
  mqueue: 'message queues',
};

/** Runs in the sandbox: prints the mounts that can be written to, with the size of each, without those of a single device. */
const listMounts = `
import json, os, stat
found = {}
for line in open("/proc/self/mountinfo"):
    before, after = line.rstrip("\\n").split(" - ")
    point, options = before.split(" ")[4], before.split(" ")[5].split(",")
    kind, _, over = after.split(" ")[:3]
    # The last mount on a place is the one that is seen.
    found.pop(point, None)
    if "ro" in options or "ro" in over.split(","): continue
    if stat.S_ISCHR(os.stat(point).st_mode): continue
    size = os.statvfs(point)
    found[point] = [point, kind, size.f_blocks * size.f_frsize]
print(json.dumps(list(found.values())))
`;

/** Fills a directory with bytes, then with empty files, until the kernel refuses more; prints what it took of each, and why it ended. */
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
  // Only these two are mounted in another way.
  ['that was made without a standby', 'plain', ['/.drover/run', '/run/secrets']],
] as const)('R-10: what a sandbox %s can write to is bounded', (_, name, points) => {
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
    // The image `host` has directories of the host under writable layers, which are on the disk of the root.
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
