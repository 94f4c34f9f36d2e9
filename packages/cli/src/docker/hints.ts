/** What Drover has in place of docker's commands, for the hint of an unknown command. */
const commands: Readonly<Record<string, string>> = {
  stats: 'drover top shows CPU, memory and processes',
  login: 'drover up --registry-credentials FILE takes the file that docker login writes',
  port: 'drover forward SANDBOX 8080:80 listens here for a port in a sandbox',
  wait: 'drover sandbox wait waits until a sandbox has stopped',
  pause: 'drover sandbox pause freezes a sandbox',
  unpause: 'drover sandbox resume ends a pause',
};

const publish = 'drover forward SANDBOX 8080:80 listens here for a port in a sandbox';
const network = 'a sandbox reaches what --allow names, such as --allow example.org; drover forward leads to its ports';
const specFlags: Readonly<Record<string, string>> = {
  '-p': publish,
  '--publish': publish,
  '--network': network,
  '--net': network,
  '--privileged': 'no sandbox is privileged; docs/inside.md says what works in one',
};
const kill = 'drover kill sends SIGKILL; for another signal: drover exec SANDBOX -- kill -s SIGNAL PID';
const flags: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  run: specFlags,
  'sandbox create': specFlags,
  kill: { '-s': kill, '--signal': kill },
  'sandbox kill': { '-s': kill, '--signal': kill },
  stop: { '--time': '--grace takes the time: --grace 10s', '--timeout': '--grace takes the time: --grace 10s' },
};

/**
 * @param path the command, such as `sandbox create`; empty for the program itself
 * @param message of the parser: `unknown command 'stats'`
 */
export function dockerHint(path: string, message: string): string | undefined {
  const [, kind, word] = /^unknown (command|option) '(-p|[^'=]+)/.exec(message) ?? [];
  if (word === undefined) return undefined;
  const hints = kind === 'option' ? flags[path] : path === '' ? commands : undefined;
  return hints !== undefined && Object.hasOwn(hints, word) ? hints[word] : undefined;
}
