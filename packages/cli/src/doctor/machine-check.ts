import { DroverError } from '@drover/foundation';
import type { Cli } from '../cli.ts';
import { runChecks, type Finding } from './checks.ts';

/** Checks that a machine must pass to be a host. */
export const hostChecks = [
  'operating system',
  'container runtime',
  'nftables',
  'ip command',
  'cgroups',
  'overlayfs',
  'user namespaces',
] as const;

/**
 * Checks this machine before anything is created. Prints warnings, and problems after the first, to stderr.
 * @param hostHint added to the hint if the machine cannot be a host
 * @throws {DroverError} for the first problem: port-in-use, missing-component, failed-precondition
 */
export async function checkMachine(
  cli: Cli,
  settings: Parameters<typeof runChecks>[0],
  names: readonly string[],
  hostHint = '',
): Promise<void> {
  const findings = await runChecks(settings, names);
  const note = ({ name, message, hint }: Finding): void => cli.out.note(`${name}: ${message} (${hint})`);
  for (const finding of findings) if (finding.level === 'warning') note(finding);
  const [first, ...others] = findings.filter(({ level }) => level === 'problem');
  if (first === undefined) return;
  for (const finding of others) note(finding);
  throw new DroverError(codeOf(first), `${first.name}: ${first.message}`, {
    hint: isHostCheck(first) ? `${first.hint}${hostHint}` : first.hint,
  });
}

function isHostCheck({ name }: Finding): boolean {
  return (hostChecks as readonly string[]).includes(name);
}

function codeOf(finding: Finding): 'port-in-use' | 'missing-component' | 'failed-precondition' {
  if (finding.name === 'port') return 'port-in-use';
  return isHostCheck(finding) ? 'missing-component' : 'failed-precondition';
}
