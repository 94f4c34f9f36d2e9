import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { errnoOf } from '@drover/foundation';
import { hasFileSystem, mountPoints, searchPath, type Cgroups, type Mounts } from '@drover/linux';
import type { RuntimeFinding } from '../runtime.ts';
import type { Program } from './program.ts';
import { UidRanges } from './uid-ranges.ts';

const run = promisify(execFile);

const ok = (subject: string, message: string): RuntimeFinding => ({ level: 'ok', subject, message, hint: '' });
const warning = (subject: string, message: string, hint: string): RuntimeFinding => ({ level: 'warning', subject, message, hint });
const problem = (subject: string, message: string, hint: string): RuntimeFinding => ({ level: 'problem', subject, message, hint });

/** What this host has and lacks for OCI containers. */
export async function checkHost(
  program: Program,
  cgroups: Cgroups,
  mounts: Mounts,
  stateDirectory: string,
): Promise<readonly RuntimeFinding[]> {
  if (process.getuid?.() !== 0)
    return [problem('privilege', 'the oci runtime mounts filesystems and needs root', 'run the agent as root, or use the docker runtime')];
  return await Promise.all([
    checkProgram(program, cgroups),
    checkCgroups(cgroups),
    Promise.resolve(checkOverlay()),
    checkUserNamespaces(mounts, stateDirectory),
    checkPassage(stateDirectory),
    checkDisk(),
  ]);
}

/** The runtime program: there, and able to deal with this host's cgroups. */
export async function checkProgram(program: Program, cgroups: Cgroups): Promise<RuntimeFinding> {
  let version: string;
  try {
    version = await program.version();
  } catch (error) {
    return problem('runtime program', error instanceof Error ? error.message : String(error), 'apt-get install runc');
  }
  if (program.name === 'crun' && cgroups.kind === 'hybrid') {
    return problem(
      'runtime program',
      `${version} has no support for the hybrid cgroup layout of this host`,
      'apt-get install runc, and choose it as the runtime program',
    );
  }
  return ok('runtime program', version);
}

async function checkCgroups(cgroups: Cgroups): Promise<RuntimeFinding> {
  const missing = await Promise.resolve(cgroups.missing());
  if (missing.length === 0) return ok('cgroups', `${cgroups.kind}, with cpu, memory and pids`);
  return problem(
    'cgroups',
    `${cgroups.kind}, without ${missing.join(', ')}: limits cannot be enforced`,
    'mount the missing controllers, or boot with systemd.unified_cgroup_hierarchy=1',
  );
}

function checkOverlay(): RuntimeFinding {
  if (hasFileSystem('overlay')) return ok('overlayfs', 'there');
  return problem('overlayfs', 'the kernel has no overlayfs loaded', 'modprobe overlay');
}

async function checkUserNamespaces(mounts: Mounts, stateDirectory: string): Promise<RuntimeFinding> {
  const ranges = new UidRanges([]);
  try {
    const refusal = await probeIdmap(mounts, ranges, stateDirectory);
    if (refusal === undefined) return ok('user namespaces', "each sandbox has its own range of ids, and its image's owners are mapped");
    return warning(
      'user namespaces',
      `not possible here (${refusal}): root in a sandbox is root's id on the host, held by capabilities, seccomp and masked paths alone`,
      'a kernel of 5.19 or later, on ext4, xfs or btrfs, gives each sandbox a range of ids of its own',
    );
  } finally {
    await ranges.close();
  }
}

/** The runtime program passes the path to the root with the sandbox's ids. */
async function checkPassage(stateDirectory: string): Promise<RuntimeFinding> {
  for (let path = stateDirectory; ; path = dirname(path)) {
    const { mode } = await stat(path);
    if ((mode & 0o001) === 0)
      return problem('state directory', `${path} lets nobody but its owner pass, and sandboxes' roots lie below`, `chmod o+x ${path}`);
    if (path === '/') return ok('state directory', stateDirectory);
  }
}

async function checkDisk(): Promise<RuntimeFinding> {
  try {
    await run('mkfs.ext4', ['-V'], { env: { ...process.env, PATH: searchPath() } });
    return ok('disk limits', 'mkfs.ext4 is there');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT')
      return warning('disk limits', `mkfs.ext4 does not run: ${String(error)}`, 'apt-get install --reinstall e2fsprogs');
    return warning('disk limits', 'mkfs.ext4 is not there: sandboxes with a disk limit will be refused', 'apt-get install e2fsprogs');
  }
}

/** Tries what every create will do: an overlay over a layer with mapped owners. Why not, in words; undefined when it works. */
export async function probeIdmap(mounts: Mounts, ranges: UidRanges, stateDirectory: string): Promise<string | undefined> {
  const directory = await mkdtemp(join(stateDirectory, probePrefix));
  const paths = ['layer', 'mapped', 'upper', 'work', 'root'].map((name) => join(directory, name));
  const [layer = '', mapped = '', upper = '', work = '', root = ''] = paths;
  const mounted: string[] = [];
  try {
    await Promise.all(paths.map((path) => mkdir(path)));
    const slot = ranges.acquire();
    ranges.release(slot);
    mounts.mapOwners(layer, mapped, await ranges.namespace(slot), 'read-only');
    mounted.push(mapped);
    mounts.overlay({ target: root, lower: [mapped], upper, work });
    mounted.push(root);
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    for (const path of mounted) mounts.detach(path);
    await rm(directory, { recursive: true, force: true });
  }
}

const probePrefix = 'probe-';

/** What probes of agents that were killed left. */
export async function removeProbes(mounts: Mounts, stateDirectory: string): Promise<void> {
  const names = await readdir(stateDirectory).catch((): string[] => []);
  for (const name of names.filter((entry) => entry.startsWith(probePrefix))) {
    const directory = join(stateDirectory, name);
    const mounted = mountPoints().filter((path) => path.startsWith(`${directory}/`));
    if (mounted.length > 0) await mounts.unmount(mounted.toReversed());
    await rm(directory, { recursive: true, force: true });
  }
}
