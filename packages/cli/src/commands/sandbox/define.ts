import type { Command } from 'commander';
import { collect, type Definition } from '../../definition.ts';

/** @param argv the whole command line: `exec ls -- COMMAND` names a sandbox `ls` */
export function defineSandboxCommands(define: Definition, argv: readonly string[]): void {
  const { program } = define;
  //
  define.command(
    program,
    'run <image> [command...]',
    'create a sandbox, run a command in it, and exit with its status',
    async () => (await import('./run.ts')).default,
    runFlags,
  );
  const sandbox = define.group('sandbox', 'create, list and change sandboxes').alias('sb');
  defineLifecycle(define, sandbox);
  defineIdentityAndContainment(define, sandbox);
  defineExec(define, argv);
  define.command(
    program,
    'attach <sandbox>',
    "connect to a sandbox's command; Ctrl-P Ctrl-Q detaches",
    async () => (await import('./exec.ts')).attach,
    (command) =>
      command.option('-n, --no-stdin', 'do not pass on stdin').option('--no-replay', 'leave out the output before the connection'),
  );
  define.command(
    program,
    'logs <sandbox>',
    "show the output of a sandbox's command",
    async () => (await import('./logs.ts')).default,
    (command) =>
      command
        .option('-f, --follow', 'wait for more output')
        .option('-n, --tail <lines>', 'only the last LINES lines')
        .option('--since <time>', 'only output of the last TIME (10m), or after a time (2026-11-29T10:00:00Z)'),
  );
  define.command(
    program,
    'top [sandbox...]',
    'show CPU, memory and process counts of sandboxes, busiest first',
    async () => (await import('./top.ts')).default,
    (command) => command.option('--once', 'print once and exit (the default in a pipe)').option('--project <project>', 'only this project'),
  );
  defineCopyAndForward(define);
}

function defineCopyAndForward(define: Definition): void {
  const { program } = define;
  define.command(
    program,
    'cp <source> <target>',
    'copy files in or out: one side is SANDBOX:PATH; - is a tar stream',
    async () => (await import('./cp.ts')).default,
    (command) =>
      command
        .option('-a, --archive', 'keep owners (by number) and set-user-ID bits; only for files that you trust')
        .option('--chown <owner>', "USER[:GROUP] that owns the copy; in a sandbox, the default is its command's user")
        .option('-L, --follow-link', 'copy the targets of symbolic links')
        .addHelpText(
          'after',
          '\nDIR/. is the content of a directory. Files that cannot be copied are named on stderr, and the exit status is then 1.\n',
        ),
  );
  define.command(
    program,
    'forward <sandbox> <ports...>',
    'forward local ports to ports in a sandbox: 8080:80',
    async () => (await import('./forward.ts')).default,
  );
}

function defineLifecycle(define: Definition, sandbox: Command): void {
  const load = () => import('./sandbox.ts');
  define.command(
    sandbox,
    'create <image> [command...]',
    'create and start a sandbox, and print its name once its command has started',
    async () => (await load()).create,
    (command) =>
      specFlags(command)
        .option('--no-wait', 'print the name as soon as the sandbox is stored; sandbox wait --for running reports whether it starts')
        .option('-t, --tty', 'give the command a terminal')
        .option('-i, --interactive', 'keep stdin open for attach')
        .option('--rm', 'remove the sandbox when its command has ended'),
  );
  define.command(sandbox, 'ls', 'list sandboxes', async () => (await load()).ls, listFlags).alias('list');
  define.command(sandbox, 'get <sandbox>', 'show a sandbox', async () => (await load()).get);
  define.command(
    sandbox,
    'start <sandbox...>',
    'start stopped sandboxes, and wait until their commands have started',
    async () => (await load()).start,
    noWaitFlag,
  );
  define.command(sandbox, 'stop <sandbox...>', 'stop sandboxes', async () => (await load()).stop, stopFlags);
  define.command(
    sandbox,
    'kill <sandbox...>',
    'stop sandboxes with SIGKILL, without a grace period',
    async () => (await load()).kill,
    noWaitFlag,
  );
  define.command(sandbox, 'pause <sandbox...>', 'freeze all processes of sandboxes', async () => (await load()).pause, noWaitFlag);
  define.command(sandbox, 'resume <sandbox...>', 'end a pause', async () => (await load()).resume, noWaitFlag);
  define
    .command(sandbox, 'rm <sandbox...>', 'remove sandboxes and their files', async () => (await load()).rm, removeFlags)
    .alias('remove');
  define.command(
    sandbox,
    'wait <sandbox>',
    "wait until a sandbox has stopped, and exit with its command's status",
    async () => (await load()).wait,
    (command) =>
      command
        .option('--for <state>', 'wait for this state and exit with 0 (repeatable); running: the command has started', collect)
        .option('--timeout <duration>', 'wait at most this long'),
  );
}

const containHelp = `
Containment needs no cooperation of the sandbox: it works on a sandbox that is untrusted or does not respond.
Only release lifts it; start and resume are refused.
Exits with 0 when everything is in force, with 6 when something is stored but not yet in force.
`;

function defineIdentityAndContainment(define: Definition, sandbox: Command): void {
  define.command(
    sandbox,
    'explain <sandbox>',
    "show every check of a sandbox's identity: verdict, evidence and time",
    async () => (await import('./explain.ts')).default,
    (command) => command.addHelpText('after', '\nExits with 0 if every check passed, with 1 if a check failed or was not made.\n'),
  );
  define.command(
    sandbox,
    'contain <sandbox>',
    'isolate a sandbox; at least one flag is required',
    async () => (await import('./contain.ts')).contain,
    (command) =>
      command
        .option('--cut-network', 'cut its network; the control plane still reaches it')
        .option('--pause', 'freeze its processes')
        .option('--kill', 'kill its processes, without a grace period')
        .option('--revoke', 'revoke its identity, and refuse to register it')
        .option('--reason <text>', 'why; shown to everyone whom the containment stops')
        .addHelpText('after', containHelp),
  );
  define.command(
    sandbox,
    'release <sandbox>',
    'lift containment: the parts that the flags name, or all of it',
    async () => (await import('./contain.ts')).release,
    (command) =>
      command
        .option('--cut-network', 'restore its network')
        .option('--pause', 'let its processes continue')
        .option('--kill', 'start it')
        .option('--revoke', 'let it register'),
  );
}

function defineExec(define: Definition, argv: readonly string[]): void {
  const loadExecs = () => import('./execs.ts');
  const exec = define.command(
    define.program,
    'exec <sandbox> [command...]',
    'run a command in a sandbox, and exit with its status',
    async () => (await import('./exec.ts')).default,
    (command) =>
      command
        .usage('[options] <sandbox> [command...]')
        .option('-t, --tty', 'give the command a terminal (the default at a terminal)')
        .option('-T, --no-tty', 'give the command no terminal')
        .option('-i, --interactive', 'with -d: keep stdin open for --attach')
        .option('-n, --no-stdin', 'do not read stdin; needed in a loop over lines')
        .option('-d, --detach', "print the command's id and leave it running")
        .option('--attach <id>', 'connect to a running command')
        .option('--linger <duration>', 'end the command after this long without a client and without output; 0s: never (1h; with -d never)')
        .option('-u, --user <user>', 'uid[:gid], or names of the image')
        .option('-w, --workdir <path>', "the command's working directory")
        .option('-e, --env <name=value>', 'an environment variable (repeatable)', collect)
        .option('--env-file <file>', 'a file of NAME=value lines (repeatable)', collect)
        .addHelpText('after', `${stdinHelp('exec -n web')}\nFor a sandbox named ls or kill: drover exec ls -- COMMAND\n`),
  );
  if (namesSandbox(argv)) return;
  define
    .command(exec, 'ls <sandbox>', 'list running and recently ended execs of a sandbox', async () => (await loadExecs()).ls)
    .alias('list');
  define.command(
    exec,
    'kill <sandbox> <exec>',
    'send a signal to the process group of an exec',
    async () => (await loadExecs()).kill,
    (command) => command.option('-s, --signal <signal>', 'a name or number: KILL, SIGRTMIN+3, 15 (SIGTERM)'),
  );
}

/** Whether the line is `exec ls -- COMMAND`: a command in a sandbox that has the name of a subcommand. */
function namesSandbox(argv: readonly string[]): boolean {
  const after = argv.slice(argv.indexOf('exec') + 1);
  return argv.includes('exec') && after.some((word, i) => ['ls', 'list', 'kill'].includes(word) && after[i + 1] === '--');
}

function stdinHelp(command: string): string {
  return `
The command reads your stdin to its end, also in a pipe or a loop. This loop needs -n to run once for each line:
  printf '1\\n2\\n' | while read x; do drover ${command} echo "$x"; done
`;
}

function runFlags(command: Command): Command {
  return specFlags(command)
    .option('-d, --detach', "print the sandbox's name and leave it running")
    .option('-t, --tty', 'give the command a terminal (the default at a terminal)')
    .option('-T, --no-tty', 'give the command no terminal')
    .option('-i, --interactive', 'with -d: keep stdin open for attach')
    .option('-n, --no-stdin', 'do not read stdin; needed in a loop over lines')
    .option('--rm', 'remove the sandbox when its command has ended')
    .addHelpText(
      'after',
      `\nIMAGE is registry/name:tag, oci-archive:PATH, docker-archive:PATH, oci:PATH, dir:PATH, or host.\n${stdinHelp('run --rm -n host')}`,
    );
}

function specFlags(command: Command): Command {
  return command
    .option('--name <name>', 'a name (generated by default)')
    .option('--project <project>', 'the project of the sandbox')
    .option('-e, --env <name=value>', 'an environment variable (repeatable); NAME alone passes on yours', collect)
    .option('--env-file <file>', 'a file of NAME=value lines (repeatable)', collect)
    .option('--secret <name>', 'a secret variable: NAME (yours), NAME=@FILE or NAME=- for stdin (repeatable)', collect)
    .option('--secret-file <name>', 'the same, as the file /run/secrets/NAME (repeatable)', collect)
    .option('--cpus <number>', 'CPU limit: 2, 0.5, 500m')
    .option('-m, --memory <size>', 'memory limit: 512m, 2g')
    .option('--shm-size <size>', 'size of /dev/shm, which counts as memory (64m, or the memory limit)')
    .option('--pids <number>', 'limit on the number of processes')
    .option('--disk <size>', 'disk size: 512m, 2g')
    .option(
      '--allow <host>',
      'allow connections to HOST, *.HOST, an address, a network, or internet (all public addresses), each with :PORT, or on ports 80 and 443 (repeatable)',
      collect,
    )
    .option('-w, --workdir <path>', "the command's working directory")
    .option('-u, --user <user>', 'uid[:gid], or names of the image')
    .option('-l, --label <key=value>', 'a label (repeatable)', collect)
    .option('--host <host>', 'run on this host')
    .option('--host-label <key=value>', 'run on a host with this label (repeatable)', collect)
    .option('--runtime <runtime>', 'a runtime that drover host ls shows: oci')
    .option('--ttl <duration>', 'stop the sandbox at this age: 30m, 12h')
    .option('--idle-stop <duration>', 'stop the sandbox after this long without a client and without activity')
    .option('-v, --volume <source:target[:ro]>', 'mount a volume, or a directory of the host (repeatable)', collect)
    .option('--hostname <name>', 'the host name inside the sandbox')
    .option('--entrypoint <program>', "replace the image's entrypoint; '' for none")
    .option('--stop-grace <duration>', 'time between the stop signal and SIGKILL')
    .option('--setup <file>', 'YAML: files, git, ssh and a script that prepare the sandbox before its command (docs/setup.md)')
    .option('--post-init <file>', 'a script that runs in the sandbox before its command, once per start');
}

export function listFlags(command: Command): Command {
  return command
    .option('--project <project>', 'only this project')
    .option('-l, --label <key=value>', 'only with this label (repeatable)', collect)
    .option('--host <host>', 'only on this host')
    .option('-a, --all', 'include removed sandboxes')
    .option('-q, --quiet', 'print names only');
}

export function noWaitFlag(command: Command): Command {
  return command.option('--no-wait', 'do not wait for completion');
}

export function stopFlags(command: Command): Command {
  return noWaitFlag(command.option('-t, --grace <duration>', 'time between the stop signal and SIGKILL'));
}

export function removeFlags(command: Command): Command {
  return noWaitFlag(
    command
      .option('-f, --force', 'kill the sandbox first if it runs')
      .option('--grace <duration>', 'stop the sandbox first, with this time between the stop signal and SIGKILL'),
  );
}
