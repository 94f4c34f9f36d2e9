import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, cp, mkdir, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { build } from 'esbuild';
import { execa } from 'execa';

const repository = join(import.meta.dirname, '..', '..');
/** What runs in the machine besides Node.js and the bundle. */
const programs = [
  '/bin/busybox',
  '/usr/bin/runc',
  '/usr/bin/crun',
  '/usr/sbin/ip',
  '/usr/bin/mount',
  '/usr/bin/umount',
  '/usr/bin/unshare',
  '/usr/bin/ldd',
  '/usr/bin/bash',
  '/usr/bin/find',
  '/usr/sbin/losetup',
  '/usr/bin/nsenter',
];
/** Kernel modules, those that others need first. */
const modules = ['overlay', 'veth'];

function missing(what: string, packages: string): Error {
  return new Error(`this test needs ${what}: apt-get install ${packages}`);
}

/** Debian's cloud kernel, unpacked from its package and not installed: nothing of this machine boots it. */
export async function fetchKernel(cache: string): Promise<{ readonly image: string; readonly modules: string }> {
  const root = join(cache, 'kernel');
  const find = async (): Promise<string | undefined> =>
    (await readdir(join(root, 'boot')).catch(() => [])).find((name) => name.startsWith('vmlinuz-'));
  if ((await find()) === undefined) {
    const { stdout } = await execa('apt-cache', ['depends', 'linux-image-cloud-amd64']);
    const name = /Depends: (linux-image-\S+)/.exec(stdout)?.[1];
    if (name === undefined) throw missing("Debian's cloud kernel", 'linux-image-cloud-amd64 (run apt-get update first)');
    const download = join(cache, 'kernel-package');
    await mkdir(download, { recursive: true });
    await execa('apt-get', ['download', name], { cwd: download });
    const [file = ''] = await readdir(download);
    await execa('dpkg-deb', ['-x', join(download, file), root]);
    await rm(download, { recursive: true });
  }
  const image = (await find()) ?? '';
  return { image: join(root, 'boot', image), modules: join(root, 'lib/modules', image.replace('vmlinuz-', '')) };
}

/** An initramfs with busybox, Node.js, the OCI runtime programs, and the guest program in one file. */
export async function buildInitramfs(directory: string, kernelModules: string): Promise<string> {
  const root = join(directory, 'root');
  for (const folder of ['bin', 'usr/bin', 'usr/sbin', 'usr/lib', 'proc', 'sys', 'dev', 'tmp', 'run', 'etc', 'root', 'modules'])
    await mkdir(join(root, folder), { recursive: true });
  await chmod(join(root, 'tmp'), 0o1777);
  const node = join(repository, 'node_modules/.bin/node');
  for (const program of programs) {
    if (program.endsWith('/crun') && !existsSync(program)) continue;
    if (!existsSync(program))
      throw missing(basename(program), program.includes('busybox') ? 'busybox-static' : `the package of ${program}`);
    await copyProgram(program, root);
  }
  await copyProgram(node, root, '/usr/bin/node');
  // busybox names for all that the machine's own scripts call; real programs stay.
  const { stdout: names } = await execa('/bin/busybox', ['--list']);
  for (const name of names.split('\n')) {
    const path = join(root, 'bin', name);
    if (!existsSync(path) && !existsSync(join(root, 'usr/bin', name)) && !existsSync(join(root, 'usr/sbin', name)))
      await symlink('busybox', path);
  }
  for (const name of modules) {
    const { stdout: path } = await execa('find', [kernelModules, '-name', `${name}.ko*`]);
    if (path === '') throw new Error(`the kernel has no module ${name}`);
    await cp(path, join(root, 'modules', `${name}.ko`));
  }
  await build({
    entryPoints: [join(import.meta.dirname, 'guest.ts')],
    outfile: join(root, 'guest/guest.mjs'),
    bundle: true,
    platform: 'node',
    format: 'esm',
    conditions: ['development'],
    banner: { js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);" },
  });
  await cp(join(repository, 'packages/agent/src/runtimes/testing/init.cjs'), join(root, 'guest/init.cjs'));
  await writeFile(join(root, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n');
  await writeFile(join(root, 'etc/group'), 'root:x:0:\n');
  await writeFile(join(root, 'init'), initScript, { mode: 0o755 });
  await writeFile(join(root, 'second-init'), secondInitScript, { mode: 0o755 });
  const image = join(directory, 'initramfs.cpio');
  await execa({ cwd: root, shell: true })`find . | /bin/busybox cpio -o -H newc > ${image}`;
  return image;
}

async function copyProgram(source: string, root: string, target = source): Promise<void> {
  await mkdir(join(root, dirname(target)), { recursive: true });
  await cp(source, join(root, target), { dereference: true });
  const { stdout } = await execa('ldd', [source], { reject: false });
  for (const [, library = ''] of stdout.matchAll(/(?:=> )?(\/\S+) \(0x/g)) {
    if (existsSync(join(root, library))) continue;
    await mkdir(join(root, dirname(library)), { recursive: true });
    await cp(library, join(root, library), { dereference: true });
  }
}

/** The kernel's first program. A runtime's pivot_root needs a root that is a mount; the initramfs is none, so all moves to a tmpfs. */
const initScript = `#!/bin/busybox sh
/bin/busybox mkdir /new
/bin/busybox mount -t tmpfs -o size=80% tmpfs /new
for name in bin usr lib lib64 etc root modules guest second-init; do
  [ -e /$name ] && /bin/busybox cp -a /$name /new/
done
for name in proc sys dev tmp run; do /bin/busybox mkdir /new/$name; done
/bin/busybox chmod 1777 /new/tmp
exec /bin/busybox switch_root /new /second-init
`;
const secondInitScript = `#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue /run/netns
mount -t tmpfs tmpfs /dev/shm
for module in ${modules.join(' ')}; do insmod /modules/$module.ko; done
ip link set lo up
node --disable-warning=ExperimentalWarning /guest/guest.mjs 2>&1
poweroff -f
`;

/** Boots the machine under software emulation and gives its console once it has powered off. */
export async function runMachine(kernel: string, initramfs: string, timeoutMs: number): Promise<string> {
  const qemu = '/usr/bin/qemu-system-x86_64';
  if (!existsSync(qemu)) throw missing('QEMU', 'qemu-system-x86');
  const child = spawn(
    qemu,
    [
      '-M',
      'pc',
      '-accel',
      'tcg,thread=multi',
      '-cpu',
      'max',
      '-smp',
      '2',
      '-m',
      '3072',
      '-nodefaults',
      '-no-reboot',
      '-nographic',
      '-serial',
      'stdio',
      '-kernel',
      kernel,
      '-initrd',
      initramfs,
      '-append',
      'console=ttyS0 quiet panic=-1 rdinit=/init',
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  clearTimeout(timer);
  if (code !== 0) throw new Error(`the machine ended with ${code}: ${output.slice(-4000)}`);
  return output;
}
