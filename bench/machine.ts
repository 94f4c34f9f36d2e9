import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { cpus, freemem, loadavg, release, totalmem } from 'node:os';

/** Something that the measurements need is not here. Printed as it is, without a stack. */
export class Missing extends Error {}

/** Where a program is, looking also where Debian keeps those for root; undefined when it is nowhere. */
export function programPath(name: string): string | undefined {
  const places = [...(process.env['PATH'] ?? '').split(':'), '/usr/local/sbin', '/usr/sbin', '/sbin'];
  return places.map((place) => `${place}/${name}`).find((path) => existsSync(path));
}

/** @throws {Missing} */
export function needProgram(name: string, debianPackage: string): string {
  const path = programPath(name);
  if (path === undefined) throw new Missing(`${name} is not installed: apt-get install ${debianPackage}`);
  return path;
}

/** Room for the sockets of `count` hosts in one process. @throws {Missing} */
export function needOpenFiles(count: number): void {
  const hard = /^Max open files\s+\d+\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? '0';
  // Node raises its own soft limit to the hard one when it starts.
  if (hard === 'unlimited' || Number(hard) >= count) return;
  throw new Missing(`this shell allows ${hard} open files, and ${count} are needed: run \`ulimit -Hn ${count}\` as root first`);
}

/** @throws {Missing} */
export function needMemory(bytes: number, what: string): void {
  if (availableMemory() >= bytes) return;
  const mib = (n: number): string => `${Math.round(n / 2 ** 20)} MiB`;
  throw new Missing(`${what} needs ${mib(bytes)} of memory, and ${mib(availableMemory())} are available`);
}

export function availableMemory(): number {
  const kb = /^MemAvailable:\s+(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1];
  return kb === undefined ? freemem() : Number(kb) * 1024;
}

/** What the figures were made on. */
export function machineFacts(): Record<string, string | number> {
  return {
    cpus: cpus().length,
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
    runc: versionOf('runc'),
    docker: versionOf('dockerd'),
    loadBefore: Math.round((loadavg()[0] ?? 0) * 100) / 100,
  };
}

function versionOf(name: string): string {
  const path = programPath(name);
  if (path === undefined) return 'absent';
  return execFileSync(path, ['--version'], { encoding: 'utf8' }).split('\n')[0]?.trim() ?? 'unknown';
}
