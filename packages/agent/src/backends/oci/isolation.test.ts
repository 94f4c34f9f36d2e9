import { execFile } from 'node:child_process';
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { mountPoints, Mounts } from '@drover/linux';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { limitsOf } from '../testing/conformance.ts';
import type { StartRequest } from '../backend.ts';
import { openOciHarness, type OciHarness, type Overrides } from '../testing/oci-harness.ts';
import { layoutOf } from './layout.ts';
import { rangeStart } from './uid-ranges.ts';
import { initMemoryAllowance, initPidsAllowance, uidRangeSize } from '../../limits.ts';

describe('what a sandbox of the oci runtime is kept from, and what works in it', () => {
  let harness: OciHarness;
  const made: StartRequest[] = [];
  const lifetime = (): AbortSignal => AbortSignal.timeout(15_000);

  beforeAll(async () => {
    harness = await openOciHarness('runc');
  });
  afterEach(async () => {
    for (const { id } of made.splice(0)) await harness.backend.destroy(id);
  });
  afterAll(async () => {
    await harness.close();
  });

  /** Runs a script in a sandbox to its end: its output, where the sandbox keeps its files, and how it ended. */
  const inside = async (script: string, overrides: Overrides = {}) => {
    const argv = ['/bin/sh', '-c', `exec > /.drover/run/out 2>&1\n${script}`];
    const request = await harness.requestOf(argv, overrides);
    made.push(request);
    await harness.backend.create(request, lifetime());
    await harness.backend.waitExit(request.id, lifetime());
    const output = await readFile(join(request.runDirectory, 'out'), 'utf8');
    const writable = layoutOf(harness.stateDirectory, request.id).writable;
    return { request, output, upper: join(writable, 'upper'), writable, state: await harness.backend.inspect(request.id) };
  };

  test('R-5: root inside is nobody in particular outside: its files belong to a range of its own', async () => {
    const first = await inside(
      'id -u; stat -c "%u %g" /bin/busybox /etc/hosts; : > /mine; touch /theirs; chown 1000:100 /theirs; stat -c "%u:%g" /theirs',
    );
    expect(first.output.split('\n')).toEqual(['0', '0 0', '0 0', '1000:100', '']);
    const mine = await stat(join(first.upper, 'mine'));
    expect(mine.uid).toBeGreaterThanOrEqual(rangeStart(0));
    const theirs = await stat(join(first.upper, 'theirs'));
    expect([theirs.uid - mine.uid, theirs.gid - mine.uid]).toEqual([1000, 100]);
    const second = await inside(': > /mine');
    expect(Math.abs((await stat(join(second.upper, 'mine'))).uid - mine.uid)).toBeGreaterThanOrEqual(uidRangeSize);
  });

  test('R-5: no new privileges, seccomp, few capabilities', async () => {
    const { output } = await inside(
      'grep -E "^(NoNewPrivs|Seccomp|CapEff|CapBnd)" /proc/self/status; mount -t tmpfs none /tmp; unshare -U true; hostname other; mknod /dev/disk b 8 0',
    );
    expect(output).toMatch(/NoNewPrivs:\s1\n/);
    expect(output).toMatch(/Seccomp:\s2\n/);
    expect(output).toMatch(/CapBnd:\s00000000800405fb\n/);
    expect(output.match(/operation not permitted|permission denied/gi)).toHaveLength(4);
  });

  test("R-5: a device file that an image brings opens nothing, /dev/net/tun's number among them, which the OCI runtime lets through", async () => {
    const layer = await mkdtemp(join(harness.directory, 'devices-'));
    await promisify(execFile)('mknod', ['-m', '0666', join(layer, 'tun'), 'c', '10', '200']);
    await promisify(execFile)('mknod', ['-m', '0666', join(layer, 'null'), 'c', '1', '3']);
    const script = 'for d in tun null; do (: < /$d) || echo "$d refused"; done; : < /dev/null && echo usable';
    const { output } = await inside(script, { layers: [harness.busybox, layer] });
    expect(output.match(/(tun|null) refused|usable/g)).toEqual(['tun refused', 'null refused', 'usable']);
  });

  test('R-5: the host cannot be seen or changed through /proc and /sys', async () => {
    const { output } = await inside(
      'cat /proc/kallsyms | wc -c; cat /proc/keys | wc -c; echo 1 > /proc/sys/kernel/panic; echo 1 > /proc/sys/vm/drop_caches; ls /sys /sys/devices/system; ls /proc | grep -c "^[0-9]"',
    );
    const lines = output.trim().split('\n');
    expect(lines.slice(0, 2)).toEqual(['0', '0']);
    expect(output.match(/Read-only file system|Permission denied/gi)).toHaveLength(2);
    expect(output).toContain('/sys:\ndevices\nfs\n');
    // init, the shell, ls and grep at most.
    expect(Number(lines.at(-1))).toBeLessThanOrEqual(4);
  });

  test('R-10: a sandbox sees its own limits, none of the cgroups above it, and changes nothing there', async () => {
    const limits = limitsOf({ memoryBytes: 64 * 1024 ** 2, pids: 50 });
    const files = 'memory/memory.limit_in_bytes pids/pids.max memory.max pids.max';
    const { output } = await inside(
      `cd /sys/fs/cgroup; for f in ${files}; do [ ! -e $f ] || cat $f; done; for f in ${files}; do [ ! -e $f ] || echo max > $f; done; ` +
        'find . | grep -c drover-test; touch mine; cut -d: -f3 /proc/self/cgroup | sort -u',
      { limits },
    );
    const lines = output.trim().split('\n');
    expect(lines.slice(0, 2)).toEqual([String(limits.memoryBytes + initMemoryAllowance), String(limits.pids + initPidsAllowance)]);
    expect(output.match(/Read-only file system/gi)).toHaveLength(3);
    expect(lines).toContain('0');
    expect(lines.at(-1)).toBe('/');
  });

  test('R-10: as many processes as a kernel can have is a limit like another', async () => {
    expect((await inside('true', { limits: limitsOf({ pids: 4_194_304 }) })).state?.exitCode).toBe(0);
  });

  test('R-5: setuid bits are kept, and give nothing', async () => {
    const { output, upper } = await inside('cp /bin/busybox /su; chmod 4755 /su; stat -c %a /su');
    expect(output).toBe('4755\n');
    const { mode, uid } = await stat(join(upper, 'su'));
    expect([mode & 0o7777, uid === 0]).toEqual([0o4755, false]);
  });

  test('I-38: init runs in an image without anything, and says that the program is not there', async () => {
    const request = await harness.requestOf(['/bin/sh'], { layers: [] });
    made.push(request);
    await harness.backend.create(request, lifetime());
    await harness.backend.waitExit(request.id, lifetime());
    expect(await harness.backend.inspect(request.id)).toMatchObject({ exitCode: 127, startFailure: expect.stringContaining('ENOENT') });
  });

  test('I-6: root of the sandbox cannot read the memory, environment and descriptors of init', async () => {
    const { output } = await inside(
      'id -u; for name in mem maps environ; do head -c 1 /proc/1/$name > /dev/null && echo "read $name"; done; ls /proc/1/fd && echo "read fd"; cat /proc/1/comm',
    );
    expect(output).toMatch(/^0\n/);
    expect(output).not.toMatch(/read /);
    expect(output.match(/permission denied/gi)).toHaveLength(4);
    // What every process may see of another is visible of init, too.
    expect(output).toMatch(/ld-linux|MainThread|node/);
  });

  test('I-6: init loads no library and no setting from /etc of the image', async () => {
    const layer = join(harness.directory, 'meddling');
    await mkdir(join(layer, 'etc/ssl'), { recursive: true });
    await copyFile(join(harness.initDirectory, 'lib/libatomic.so.1'), join(layer, 'meddling.so'));
    await writeFile(join(layer, 'etc/ld.so.preload'), '/meddling.so\n');
    await writeFile(join(layer, 'etc/ld.so.cache'), 'none');
    await writeFile(
      join(layer, 'etc/ssl/openssl.cnf'),
      'nodejs_conf = meddling\nopenssl_conf = meddling\n[meddling]\nproviders = some\n[some]\nevil = evil\n[evil]\nmodule = /no/such.so\nactivate = 1\n',
    );
    const request = await harness.requestOf(['/bin/sh', '-c', ': > /.drover/run/out; sleep 60'], { layers: [harness.busybox, layer] });
    made.push(request);
    await harness.backend.create(request, lifetime());
    await vi.waitFor(async () => await stat(join(request.runDirectory, 'out')), { timeout: 10_000 });
    const state = await harness.backend.inspect(request.id);
    const maps = await readFile(`/proc/${state?.pid}/maps`, 'utf8');
    expect(maps).toContain('libc.so.6');
    expect(maps).not.toContain('meddling');
  });

  test('layers lie over one another, the last on top, and none is written to', async () => {
    const [low, high] = [join(harness.directory, 'low, with:odd \\name'), join(harness.directory, 'high')];
    for (const [layer, text] of [
      [low, 'low'],
      [high, 'high'],
    ] as const) {
      await mkdir(join(layer, 'etc'), { recursive: true });
      await writeFile(join(layer, 'etc/which'), text);
      await writeFile(join(layer, `etc/${text}`), '');
    }
    const { output } = await inside('cat /etc/which; echo; ls /etc; echo changed > /etc/which; rm /etc/low', {
      layers: [harness.busybox, low, high],
    });
    expect(output).toBe('high\nhigh\nhostname\nhosts\nlow\nresolv.conf\nwhich\n');
    expect(await readFile(join(high, 'etc/which'), 'utf8')).toBe('high');
    expect(await stat(join(low, 'etc/low'))).toBeDefined();
  });

  test('names and /tmp are put where the links of the image lead, never out of it', async () => {
    const [links, whiteout] = [join(harness.directory, 'links'), join(harness.directory, 'whiteout')];
    await mkdir(join(links, 'opt/config'), { recursive: true });
    await mkdir(join(links, 'tmp'));
    await chmod(join(links, 'opt/config'), 0o751);
    await writeFile(join(links, 'opt/config/passwd'), 'user:x:7:7::/:/bin/sh\n');
    await symlink('/run/systemd/resolve/stub-resolv.conf', join(links, 'opt/config/resolv.conf'));
    await symlink('../../../opt/config', join(links, 'etc'));
    await mkdir(whiteout);
    await promisify(execFile)('mknod', [join(whiteout, 'tmp'), 'c', '0', '0']);
    const { output } = await inside('cat /etc/passwd /etc/hostname; grep -c timeout /etc/resolv.conf; stat -c "%a %u" /tmp/. /opt/config', {
      layers: [harness.busybox, links, whiteout],
    });
    expect(output).toBe('user:x:7:7::/:/bin/sh\nbox\n1\n1777 0\n751 0\n');
  });

  test("R-4: the host's own directories, read-only under a writable layer", async () => {
    const root = join(harness.directory, 'host-root');
    for (const name of ['usr', 'etc', 'tmp', 'var/lib']) await mkdir(join(root, name), { recursive: true });
    for (const name of ['bin', 'sbin', 'lib', 'lib64']) await symlink(`usr/${name}`, join(root, name)).catch(() => undefined);
    const { output, state } = await inside(
      'set -e; stat -c "%u %n" /usr/bin/env; touch /usr/bin/mine; ls /usr/bin/mine; python3 -c "print(6 * 7)"; git --version > /dev/null; perl -e "print 1"; command -v gcc',
      { layers: [root], submounts: [{ lower: '/usr', target: '/usr' }] },
    );
    expect(output).toContain('0 /usr/bin/env\n/usr/bin/mine\n42\n1');
    expect(state?.exitCode).toBe(0);
    await expect(stat('/usr/bin/mine')).rejects.toThrow('ENOENT');
  });

  test('a sandbox that turned the place of a submount into a link cannot lead the next start astray', async () => {
    const root = join(harness.directory, 'evil-root');
    await mkdir(join(root, 'opt/deep'), { recursive: true });
    const submounts = [{ lower: harness.busybox, target: '/opt/deep' }];
    const { request } = await inside('mv /opt /opt-away && ln -s /.drover /opt; ls -d /opt', {
      layers: [harness.busybox, root],
      submounts,
    });
    const layout = layoutOf(harness.stateDirectory, request.id);
    // As after a reboot of the host.
    const { unmountAll } = await import('./rootfs.ts');
    await unmountAll(new Mounts(), layout);
    await rm(join(layout.writable, 'upper/opt'), { recursive: true, force: true });
    await symlink('/tmp', join(layout.writable, 'upper/opt'));
    await expect(harness.backend.start(request, lifetime())).rejects.toThrow(/no plain directory|ENOENT/);
  });

  test('R-18: a volume is mounted once, with its owners mapped, also after an agent that was killed while it mounted it', async () => {
    const volume = await mkdtemp(join(harness.directory, 'volume-'));
    await writeFile(join(volume, 'file'), 'one');
    const argv = ['/bin/sh', '-c', 'exec > /.drover/run/out 2>&1; stat -c %u /data/file; echo two > /data/file'];
    const request = await harness.requestOf(argv, { mounts: [{ source: volume, target: '/data', readOnly: false }] });
    made.push(request);
    const mapped = join(layoutOf(harness.stateDirectory, request.id).mapped, 'volume0');
    await mkdir(`${mapped}-plain`, { recursive: true });
    await promisify(execFile)('mount', ['--bind', volume, `${mapped}-plain`]);
    await harness.backend.create(request, lifetime());
    expect(mountPoints().filter((path) => path.startsWith(mapped))).toEqual([mapped]);
    await harness.backend.waitExit(request.id, lifetime());
    expect(await readFile(join(request.runDirectory, 'out'), 'utf8')).toBe('0\n');
    expect(await readFile(join(volume, 'file'), 'utf8')).toBe('two\n');
  });

  test('R-18: volumes look the same to every sandbox, whichever range of ids it has', async () => {
    const volume = await mkdtemp(join(harness.directory, 'volume-'));
    const mounts = [{ source: volume, target: '/data', readOnly: false }];
    await inside('echo one > /data/file; chown 5:5 /data/file', { mounts });
    const second = await inside('stat -c "%u:%g" /data/file; cat /data/file', { mounts });
    expect(second.output).toBe('5:5\none\n');
    const third = await inside('echo two > /data/file', { mounts: [{ source: volume, target: '/data', readOnly: true }] });
    expect(third.output).toContain('Read-only file system');
  });

  test('R-10: a disk limit is a full disk inside, and leaves no loop device', async () => {
    const { request, output, state } = await inside('dd if=/dev/zero of=/big bs=1M count=100; stat -c %s /big', {
      limits: limitsOf({ diskBytes: 32 * 1024 * 1024 }),
    });
    expect(output).toContain('No space left on device');
    expect(state?.phase).toBe('ended');
    await harness.backend.destroy(request.id);
    expect(await harness.leftovers(request.id)).toEqual([]);
  });

  test.each([
    ['a link', 'ln -s /etc/hosts exit.json'],
    ['a pipe', 'mkfifo exit.json'],
    ['too large', 'head -c 100000 /dev/zero > exit.json'],
    ['nonsense', 'echo "{\\"code\\": 1000, \\"at\\": 0}" > exit.json'],
  ])('R-9: an exit record that is %s counts as none, and does not end what runs', async (_, make) => {
    const request = await harness.requestOf(['/bin/sh', '-c', `cd /.drover/run; ${make}; mkdir done; sleep 60`]);
    made.push(request);
    await harness.backend.create(request, lifetime());
    for (;;) {
      if ((await readdir(request.runDirectory)).includes('done')) break;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(await harness.backend.inspect(request.id)).toMatchObject({ phase: 'running' });
    await harness.backend.kill(request.id, 'SIGKILL');
    await harness.backend.waitExit(request.id, lifetime());
    expect(await harness.backend.inspect(request.id)).toMatchObject({ phase: 'ended', exitCode: 137 });
  });
});
