import { execFile } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { errnoOf } from '@drover/foundation';
import { hasFileSystem, searchPath, type Cgroups, type Mounts } from '@drover/linux';
import type { Finding } from '../../finding.ts';
import { probeMapping } from './mapping-probe.ts';
import type { OciHost } from './oci-host.ts';
import type { RuntimeProgram } from './runtime-program.ts';
import { UidRanges } from './uid-ranges.ts';

const run = promisify(execFile);

const ok = (subject: string, message: string): Finding => ({ level: 'ok', subject, message, hint: '' });
const warning = (subject: string, message: string, hint: string): Finding => ({ level: 'warning', subject, message, hint });
const problem = (subject: string, message: string, hint: string): Finding => ({ level: 'problem', subject, message, hint });

/** Checks what this host has and lacks for OCI containers. */
export async function checkHost(host: OciHost): Promise<readonly Finding[]> {
  await host.prepare();
  const { program, cgroups, mounts, stateDirectory } = host;
  if (process.getuid?.() !== 0)
    return [problem('privilege', 'the oci runtime mounts filesystems and needs root', 'run the agent as root, or use the docker runtime')];
  const others = await Promise.all([
    checkProgram(program, cgroups),
    checkCgroups(cgroups),
    checkUserNamespaces(mounts, stateDirectory),
    checkPassage(stateDirectory),
    checkDisk(),
  ]);
  return [...others, checkOverlay()];
}

/** Whether the runtime program exists and supports this host's cgroups. */
export async function checkProgram(program: RuntimeProgram, cgroups: Cgroups): Promise<Finding> {
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

async function checkCgroups(cgroups: Cgroups): Promise<Finding> {
  const missing = await Promise.resolve(cgroups.missing());
  if (missing.length === 0) return ok('cgroups', `${cgroups.kind}, with cpu, memory and pids`);
  return problem(
    'cgroups',
    `${cgroups.kind}, without ${missing.join(', ')}: limits cannot be enforced`,
    'mount the missing controllers, or boot with systemd.unified_cgroup_hierarchy=1',
  );
}

function checkOverlay(): Finding {
  if (hasFileSystem('overlay')) return ok('overlayfs', 'available');
  return problem('overlayfs', 'the kernel has no overlayfs loaded', 'modprobe overlay');
}

async function checkUserNamespaces(mounts: Mounts, stateDirectory: string): Promise<Finding> {
  const ranges = new UidRanges([]);
  try {
    const refusal = await probeMapping(mounts, ranges, stateDirectory);
    if (refusal === undefined) return ok('user namespaces', "each sandbox has its own range of ids, and its image's owners are mapped");
    return warning(
      'user namespaces',
      `not possible here (${refusal}): root in a sandbox is root's id on the host, held by capabilities, seccomp and masked paths alone`,
      'a kernel of 5.19 or later, on ext4, xfs or btrfs, allows a range of ids for each sandbox',
    );
  } finally {
    await ranges.close();
  }
}

/** The runtime program walks the path to the root with the sandbox's ids. */
async function checkPassage(stateDirectory: string): Promise<Finding> {
  for (let path = stateDirectory; ; path = dirname(path)) {
    const { mode } = await stat(path);
    if ((mode & 0o001) === 0)
      return problem('state directory', `${path} lets only its owner pass, and sandboxes' roots lie below it`, `chmod o+x ${path}`);
    if (path === '/') return ok('state directory', stateDirectory);
  }
}

async function checkDisk(): Promise<Finding> {
  try {
    await run('mkfs.ext4', ['-V'], { env: { ...process.env, PATH: searchPath() } });
    return ok('disk limits', 'mkfs.ext4 is available');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT')
      return warning('disk limits', `mkfs.ext4 does not run: ${String(error)}`, 'apt-get install --reinstall e2fsprogs');
    return warning('disk limits', 'mkfs.ext4 is missing: sandboxes with a disk limit will be refused', 'apt-get install e2fsprogs');
  }
}
