import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { build } from 'esbuild';

const repository = join(import.meta.dirname, '..', '..');
/** Kernel modules that a sandbox needs; a disk with a file system of its own is a loop device. */
const modules = ['overlay', 'veth', 'loop'];

const kernel = '/usr/bin/linux.uml';
const kernelModules = '/usr/lib/uml/modules';

/** Puts the guest's program, in one file and that of its thread, and the kernel's modules into a directory. */
export async function buildGuest(directory: string): Promise<void> {
  const names = await readdir(kernelModules, { recursive: true });
  for (const name of modules) {
    const path = names.find((one) => one.endsWith(`/${name}.ko`));
    if (path === undefined) throw new Error(`the kernel has no module ${name}`);
    await cp(join(kernelModules, path), join(directory, `${name}.ko`));
  }
  await build({
    // A thread of the agent's is started from its own file, beside.
    entryPoints: {
      guest: join(import.meta.dirname, 'guest.ts'),
      'binding-thread': join(repository, 'packages/agent/src/runtimes/oci/binding-thread.ts'),
    },
    outdir: directory,
    bundle: true,
    platform: 'node',
    format: 'esm',
    conditions: ['development'],
    banner: { js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);" },
  });
  await writeFile(join(directory, 'package.json'), JSON.stringify({ type: 'module' }));
  await cp(join(repository, 'packages/agent/src/runtimes/testing/init.cjs'), join(directory, 'init.cjs'));
  await writeFile(join(directory, 'init'), initScript(directory, join(repository, 'node_modules/.bin/node')), { mode: 0o755 });
}

/** The kernel's first program. The root is this machine's, which cannot be written to; what is written is in the guest's memory. */
const initScript = (directory: string, node: string): string => `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -m 1777 /run/tmp
mkdir /run/netns
for module in ${modules.join(' ')}; do /bin/busybox insmod ${directory}/$module.ko; done
ip link set lo up
${node} --disable-warning=ExperimentalWarning ${directory}/guest.js 2>&1
/bin/busybox poweroff -f
`;

/** Boots Debian's User-mode Linux, a kernel as a program, and gives its console once it has powered off. */
export async function runMachine(directory: string, timeoutMs: number): Promise<string> {
  const root = ['root=/dev/root', 'rootfstype=hostfs', 'rootflags=/', 'ro'];
  const consoles = ['con=null', 'con0=null,fd:1'];
  const child = spawn(kernel, ['mem=2048M', ...root, ...consoles, `init=${join(directory, 'init')}`, 'quiet'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    // The guest's memory is a file in the one, what the kernel keeps about itself is in the other.
    env: { TMPDIR: directory, HOME: directory },
    // Its processes are in its group.
    detached: true,
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  const timer = setTimeout(() => child.pid !== undefined && process.kill(-child.pid, 'SIGKILL'), timeoutMs);
  const [code] = (await once(child, 'close')) as [number | null];
  clearTimeout(timer);
  if (code !== 0) throw new Error(`the machine ended with ${code}: ${output.slice(-4000)}`);
  return output;
}
