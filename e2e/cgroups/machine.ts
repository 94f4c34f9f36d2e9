import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { cp, mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import { build } from 'esbuild';
import { copyLibraries, repository } from '../harness/index.ts';

const run = promisify(execFile);
/** Debian's cloud kernel and the modules that a sandbox needs, unpacked by scripts/bootstrap.sh. */
const kernelDirectory = join(repository, '.cache', 'kernel');
/** Programs of the guest: the OCI runtimes, and the programs that the agent and its test harness call. */
const programs = ['runc', 'crun', 'ip', 'mount', 'umount', 'find', 'newuidmap'];
const busybox = '/bin/busybox';

/**
 * The emulated machine and its console. q35 has the timers that the kernel needs to measure the CPU's clock. The smaller microvm lacks them
 * and its kernel does not boot while the host is busy.
 */
const machines: Partial<Record<NodeJS.Architecture, { readonly emulator: string; readonly type: string; readonly console: string }>> = {
  x64: { emulator: 'qemu-system-x86_64', type: 'q35', console: 'ttyS0' },
  arm64: { emulator: 'qemu-system-aarch64', type: 'virt', console: 'ttyAMA0' },
};

/**
 * Makes the guest's file system, `initramfs`, in a directory: the test program, and the programs that it runs with their libraries. The
 * kernel unpacks it into memory, so the guest needs no disk and no driver.
 */
export async function buildGuest(directory: string): Promise<void> {
  const root = join(directory, 'root');
  for (const name of ['bin', 'dev', 'etc', 'proc', 'run', 'sys', 'tmp']) await mkdir(join(root, name), { recursive: true });
  await build({
    // The agent starts a thread from a file beside its own.
    entryPoints: {
      guest: join(import.meta.dirname, 'guest.ts'),
      'root-replacement-thread': join(repository, 'packages/linux/src/root-replacement-thread.ts'),
    },
    outdir: join(root, 'guest'),
    bundle: true,
    platform: 'node',
    format: 'esm',
    conditions: ['development'],
    banner: { js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);" },
  });
  await writeFile(join(root, 'guest/package.json'), JSON.stringify({ type: 'module' }));
  await cp(join(repository, 'packages/agent/src/backends/testing/init.cjs'), join(root, 'guest/init.cjs'));
  await cp(process.execPath, join(root, 'bin/node'));
  const located = await Promise.all(programs.map(async (name) => (await run('which', [name])).stdout.trim()));
  for (const path of [busybox, ...located]) await cp(path, join(root, path), { dereference: true });
  await copyLibraries([process.execPath, ...located], root);
  const modules = (await readdir(kernelDirectory)).filter((name) => name.endsWith('.ko'));
  for (const name of modules) await cp(join(kernelDirectory, name), join(root, 'guest', name));
  await writeFile(join(root, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n');
  await writeFile(join(root, 'init'), initScript(modules), { mode: 0o755 });
  const pack = spawn(busybox, ['sh', '-c', 'find . | cpio -o -H newc'], { cwd: root, stdio: ['ignore', 'pipe', 'ignore'] });
  await pipeline(pack.stdout, createWriteStream(join(directory, 'initramfs')));
}

/**
 * The kernel's first program. A container's root can replace only a root that is a mount with a parent, which the initramfs is not, so the
 * script binds it over itself first.
 */
const initScript = (modules: readonly string[]): string => `#!${busybox} sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ "$1" != bound ]; then
  ${busybox} mkdir /bound
  ${busybox} mount --bind / /bound
  cd /bound
  ${busybox} mount --move . /
  exec ${busybox} chroot . /init bound
fi
${busybox} --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue /run/netns
mount -t tmpfs tmpfs /dev/shm
for module in ${modules.join(' ')}; do insmod /guest/$module; done
ip link set lo up
node --disable-warning=ExperimentalWarning /guest/guest.js 2>&1
poweroff -f
`;

/**
 * Boots the kernel with the guest's file system in QEMU, and returns the console's output once the machine has powered off. QEMU emulates the
 * CPU: hardware virtualization is absent on many CI machines, and may hang where it is nested. The guest has one CPU: with two emulated ones
 * its kernel sometimes stopped receiving timer interrupts on a busy machine.
 */
export async function runMachine(directory: string, timeoutSeconds: number): Promise<string> {
  const machine = machines[process.arch];
  if (machine === undefined) throw new Error(`there is no virtual machine for ${process.arch}`);
  const hardware = ['-machine', machine.type, '-accel', 'tcg', '-cpu', 'max', '-smp', '1', '-m', '2048'];
  const boot = ['-kernel', join(kernelDirectory, 'vmlinuz'), '-initrd', join(directory, 'initramfs')];
  const append = ['-append', `console=${machine.console} quiet panic=-1`];
  const devices = ['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-serial', 'stdio'];
  // timeout(1) ends the machine even when this process is killed.
  const child = spawn('timeout', ['--signal=KILL', String(timeoutSeconds), machine.emulator, ...hardware, ...boot, ...append, ...devices], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0) throw new Error(`the machine ended with ${code}: ${output.slice(-4000)}`);
  return output;
}
