import { Command, Option, type CommandOptions } from 'commander';
import { version } from '@drover/foundation';
import type { Cli, ConnectionFlags, Handler } from './cli.ts';
import { collect } from './parse.ts';

/** Runs a handler with the flags of the command line. */
export type Run = (command: Command, flags: CommonFlags, work: (cli: Cli) => Promise<number | void>) => Promise<void>;

export interface CommonFlags extends ConnectionFlags {
  readonly output?: string;
}

/** Flags that every command has. They can also stand before the command, as in `drover -o json sandbox ls`. */
function commonFlags(command: Command): Command {
  return command
    .optionsGroup('Output and connection:')
    .addOption(new Option('-o, --output <format>', 'how to print').choices(['text', 'json']))
    .addOption(new Option('--context <context>', 'the control plane of this context (DROVER_CONTEXT); drover context ls lists them'))
    .addOption(new Option('--server <url>', 'the control plane (DROVER_SERVER)'))
    .addOption(new Option('--token <token>', 'the API token (DROVER_TOKEN)'))
    .addOption(new Option('--ca <file>', "the control plane's CA, PEM (DROVER_CA)"))
    .optionsGroup('Options:');
}

/** Whether the last argument of a command is the command to run in a sandbox, which may have flags of its own. */
export function takesCommand(command: Command): boolean {
  return command.registeredArguments.at(-1)?.name() === 'command';
}

/**
 * The command line: names, flags and help. The work is in modules that are loaded when they are needed, so that the start
 * stays quick whatever the program grows to.
 * @param argv the command line that it is to read
 */
export function buildProgram(run: Run, argv: readonly string[] = []): Command {
  const program = new Command('drover')
    .description('Runs fleets of sandboxes on machines that you own.')
    .version(version, '-V, --version', 'show the version of this program')
    .helpOption('-h, --help', 'show this help')
    .helpCommand('help [command]', 'show the help of a command')
    .showHelpAfterError(false)
    .showSuggestionAfterError(true)
    // What follows `agent join` is join's, though `agent` knows --state, --token and others too; inherited by all commands.
    .enablePositionalOptions()
    .addHelpText(
      'after',
      `
First:   drover up
Then:    drover run host -- sh

Ends with 0 when all is well, 2: wrong input, 3: not found, 4: conflict, 5: denied, 6: unavailable, 7: no room, 8: timed out, 130: interrupted, 1: the rest.
run, exec, attach and sandbox wait end with the command's own status; for run, exec and attach 125: Drover failed, 126: the command
cannot be executed, 127: there is no such command.
`,
    );
  commonFlags(program);

  /** Ends a definition: flags that every command has, and the handler's module. */
  const does = <A extends readonly unknown[], O>(command: Command, load: () => Promise<Handler<A, O>>): Command =>
    commonFlags(command)
      // What follows IMAGE or SANDBOX belongs to the command to run, flags included, as with docker.
      .passThroughOptions(takesCommand(command))
      .action(async (...all: unknown[]) => {
        const { config } = command.opts<{ config?: string }>();
        if (config !== undefined) await (await import('./config-file.ts')).applyConfigFile(command, config);
        const flags: CommonFlags = { ...program.opts<CommonFlags>(), ...command.opts<CommonFlags>() };
        const values = all.slice(0, command.registeredArguments.length) as unknown as A;
        await run(command, flags, async (cli) => (await load())(cli, values, flags as O));
      });
  const add = (parent: Command, nameAndArguments: string, description: string, options?: CommandOptions): Command =>
    parent.command(nameAndArguments, options ?? {}).description(description);

  program.commandsGroup('This machine:');
  //
  does(
    hostFlags(add(program, 'up', 'start a control plane and a host on this machine'))
      .option('--config <file>', 'YAML with any of these flags, such as `pool: 10.50.0.0/16`')
      .option('--data <directory>', `where everything is kept (${dataDefault})`)
      .option('--listen <address>', 'HOST:PORT of the API', '127.0.0.1:7443')
      .option('--link-listen <address>', "HOST:PORT for the hosts (the API's, one port on)")
      .option('--public-host <name>', 'the name or address that hosts and clients dial, where it is another')
      .option('--host-ttl <duration>', 'a host silent for this long is down (30s)')
      .option('--lost-grace <duration>', 'a host down for this long makes its sandboxes lost (1m)')
      .option('--no-agent', 'the control plane alone')
      .option('--stop-sandboxes', 'stop the sandboxes at the end; without it they run on'),
    async () => (await import('./up/up.ts')).default,
  );
  does(
    add(program, 'serve', 'run the control plane')
      .option('--config <file>', 'YAML with any of these flags, such as `pool: 10.50.0.0/16`')
      .option('--data <directory>', `where everything is kept (${dataDefault})`)
      .option('--listen <address>', 'HOST:PORT of the API', '127.0.0.1:7443')
      .option('--link-listen <address>', "HOST:PORT for the hosts (the API's, one port on)")
      .option('--public-host <name>', 'the name or address that hosts and clients dial, where it is another')
      .option('--host-ttl <duration>', 'a host silent for this long is down (30s)')
      .option('--lost-grace <duration>', 'a host down for this long makes its sandboxes lost (1m)')
      .option('--store <url>', 'postgres://… instead of SQLite in the data directory'),
    async () => (await import('./commands/system/serve.ts')).default,
  );
  const agent = does(
    hostFlags(add(program, 'agent', 'run the host agent'))
      .option('--config <file>', 'YAML with any of these flags, such as `pool: 10.50.0.0/16`')
      .option('--state <directory>', `where the host keeps its state (${stateDefault})`)
      .option('--link <address>', "HOST:PORT of the control plane's link, when it moved since the join"),
    async () => (await import('./commands/system/agent.ts')).default,
  );
  does(
    hostFlags(add(agent, 'join <url>', 'make this machine a host of a control plane, and run its agent'))
      .option('--state <directory>', `where the host keeps its state (${stateDefault})`)
      .option('--no-run', 'join only'),
    async () => (await import('./commands/system/agent.ts')).join,
  );
  does(
    add(program, 'doctor', 'find what is missing or wrong, and say what to do')
      .option('--host <host>', 'ask a host instead of this machine')
      .option('--data <directory>', `the data directory to look at (${dataDefault})`)
      .option('--listen <address>', 'HOST:PORT that up would take', '127.0.0.1:7443'),
    async () => (await import('./doctor/command.ts')).default,
  );
  does(
    add(program, 'version', 'the versions of this program and of the control plane'),
    async () => (await import('./commands/system/version.ts')).default,
  );
  contextCommands(program, add, does);
  does(
    add(program, 'completion <shell>', 'print the completion script of bash, zsh or fish').addHelpText(
      'after',
      `
bash:  source <(drover completion bash)                                     in ~/.bashrc
zsh:   source <(drover completion zsh)                                      in ~/.zshrc
fish:  drover completion fish > ~/.config/fish/completions/drover.fish
`,
    ),
    async () => (await import('./completion/script.ts')).default,
  );
  program.commandsGroup('Sandboxes:');
  //
  does(
    specFlags(add(program, 'run <image> [command...]', 'create a sandbox, run a command in it, and end with its status'))
      .option('-d, --detach', "print the sandbox's name and leave it running")
      .option('-t, --tty', 'give the command a terminal (the default at a terminal)')
      .option('-T, --no-tty', 'give it none')
      .option('-i, --interactive', 'with -d: keep stdin open for attach')
      .option('-n, --no-stdin', 'do not read your stdin; in a loop over lines, which run would read')
      .option('--rm', 'remove the sandbox when the command has ended')
      .addHelpText(
        'after',
        `\nIMAGE is registry/name:tag, oci-archive:PATH, docker-archive:PATH, oci:PATH, dir:PATH, or host.\n${stdinHelp('run --rm -n host')}`,
      ),
    async () => (await import('./commands/sandbox/run.ts')).default,
  );
  sandboxCommands(program, add, does, argv);
  program.commandsGroup('Fleet:');
  hostCommands(program, add, does);
  imageCommands(program, add, does);
  volumeCommands(program, add, does);
  identityCommands(program, add, does);
  does(
    add(program, 'events', 'what happened')
      .option('-f, --follow', 'go on with what happens')
      .option('--since <id>', 'after this event; 0 begins with the first that is kept')
      .option('--kind <kinds>', 'sandbox, host, session, identity, init, network; with commas, or again, for more', collect)
      .option('--tail <number>', 'begin with the last so many')
      .option('--subject <sandbox or host>', 'of one sandbox or host, by name or id'),
    async () => (await import('./commands/system/events.ts')).default,
  );
  program.commandsGroup('As with docker:');
  dockerCommands(program, add, does);
  return program;
}

// In words, as the help is the same for every user.
const dataDefault = '/var/lib/drover; ~/.local/share/drover when not root';
const stateDefault = '/var/lib/drover/host; ~/.local/share/drover/host when not root';

type Add = (parent: Command, nameAndArguments: string, description: string, options?: CommandOptions) => Command;
type Does = <A extends readonly unknown[], O>(command: Command, load: () => Promise<Handler<A, O>>) => Command;

function hostFlags(command: Command): Command {
  return command
    .option('--name <name>', "the host's name (the machine's)")
    .option('--label <key=value>', "one of the host's labels (repeatable)", collect)
    .option('--zone <zone>', 'where the host stands')
    .option('--pool <network>', 'addresses for its sandboxes (10.213.0.0/16)')
    .option('--cpus <number>', 'CPUs that it offers to sandboxes, more or fewer than it has: 64, 1.5 (all it has)')
    .option('--runtime-program <program>', 'runc, crun, or a path')
    .option('--allow-mount <directory>', 'a directory that sandboxes may mount (repeatable)', collect)
    .option('--reconnect-max <duration>', 'the longest wait between two tries to reach the control plane (30s)')
    .option('--standbys <number>', 'sandboxes kept ready so that the next start at once, 20 MB each (one for 2 GB of memory, at most 16)')
    .option('--insecure-registry <host>', 'HOST[:PORT] that may speak plain HTTP or have an invalid certificate (repeatable)', collect)
    .option('--registry-mirror <registry=mirror>', 'try MIRROR before REGISTRY (repeatable)', collect)
    .option('--registry-credentials <file>', 'credentials for registries, as docker login writes them, its credential helpers included');
}

function specFlags(command: Command): Command {
  return command
    .option('--name <name>', 'a name; made up when absent')
    .option('--project <project>', 'the project that the name belongs to')
    .option('-e, --env <name=value>', 'an environment variable (repeatable); NAME alone passes on yours', collect)
    .option('--env-file <file>', 'NAME=value lines (repeatable)', collect)
    .option('--secret <name>', 'a secret variable: NAME (yours), NAME=@FILE or NAME=- for stdin (repeatable)', collect)
    .option('--secret-file <name>', 'the same, as the file /run/secrets/NAME (repeatable)', collect)
    .option('--cpus <number>', 'at most this many CPUs: 2, 0.5, 500m')
    .option('-m, --memory <size>', 'at most this much memory: 512m, 2g')
    .option('--shm-size <size>', 'the size of /dev/shm, of its memory (64m, or the memory limit)')
    .option('--pids <number>', 'at most this many processes')
    .option('--disk <size>', 'the size of its disk: 512m, 2g')
    .option(
      '--allow <host>',
      'let it reach HOST, *.HOST, an address, a network or internet (all public addresses), each with :PORT, or on ports 80 and 443 (repeatable)',
      collect,
    )
    .option('-w, --workdir <path>', 'the directory that the command starts in')
    .option('-u, --user <user>', 'uid[:gid], or names of the image')
    .option('-l, --label <key=value>', 'a label (repeatable)', collect)
    .option('--host <host>', 'on this host')
    .option('--host-label <key=value>', 'only on hosts with this label (repeatable)', collect)
    .option('--runtime <runtime>', 'a runtime that drover host ls shows: oci')
    .option('--ttl <duration>', 'stop it when it is older: 30m, 12h')
    .option('--idle-stop <duration>', 'stop it after this long without a client and without activity')
    .option('-v, --volume <source:target[:ro]>', 'a volume, or a directory of the host (repeatable)', collect)
    .option('--hostname <name>', "the sandbox's own host name")
    .option('--entrypoint <program>', "instead of the image's; '' for none")
    .option('--stop-grace <duration>', 'between SIGTERM and SIGKILL')
    .option('--setup <file>', 'YAML: files, git, ssh and a script that prepare it before its command (docs/setup.md)')
    .option('--post-init <file>', 'a script of yours that runs in it before its command, once a start');
}

const loadExecs = () => import('./commands/sandbox/execs.ts');

/** `exec ls -- COMMAND` runs a command in a sandbox that is named as the subcommand. */
function namesSandbox(argv: readonly string[]): boolean {
  const after = argv.slice(argv.indexOf('exec') + 1);
  return argv.includes('exec') && after.some((word, i) => ['ls', 'list', 'kill'].includes(word) && after[i + 1] === '--');
}

function stdinHelp(command: string): string {
  return `
The command's stdin is yours, to its end, also in a pipe or a loop. So that this loop runs for each line, -n is needed:
  printf '1\\n2\\n' | while read x; do drover ${command} echo "$x"; done
`;
}

function sandboxCommands(program: Command, add: Add, does: Does, argv: readonly string[]): void {
  const sandbox = add(program, 'sandbox', 'make, list and change sandboxes').alias('sb');
  const load = () => import('./commands/sandbox/sandbox.ts');
  does(
    specFlags(add(sandbox, 'create <image> [command...]', 'create a sandbox and start it; print its name when its command has begun'))
      .option('--no-wait', 'print it as soon as the sandbox is stored; whether it starts, sandbox wait --for running tells')
      .option('-t, --tty', 'give its command a terminal')
      .option('-i, --interactive', 'keep its stdin open for attach')
      .option('--rm', 'remove it when the command has ended'),
    async () => (await load()).create,
  );
  does(listFlags(add(sandbox, 'ls', 'list sandboxes').alias('list')), async () => (await load()).ls);
  does(add(sandbox, 'get <sandbox>', 'show one sandbox'), async () => (await load()).get);
  does(
    noWaitFlag(add(sandbox, 'start <sandbox...>', 'start stopped sandboxes, and wait until their commands have begun')),
    async () => (await load()).start,
  );
  does(stopFlags(add(sandbox, 'stop <sandbox...>', 'stop sandboxes')), async () => (await load()).stop);
  does(
    noWaitFlag(add(sandbox, 'kill <sandbox...>', 'stop sandboxes with SIGKILL, without the grace of stop')),
    async () => (await load()).kill,
  );
  does(noWaitFlag(add(sandbox, 'pause <sandbox...>', 'freeze what runs in it')), async () => (await load()).pause);
  does(noWaitFlag(add(sandbox, 'resume <sandbox...>', 'go on after a pause')), async () => (await load()).resume);
  does(removeFlags(add(sandbox, 'rm <sandbox...>', 'remove sandboxes and their files').alias('remove')), async () => (await load()).rm);
  does(
    add(sandbox, 'wait <sandbox>', "wait until it has stopped, and end with its command's status")
      .option('--for <state>', 'wait for this state instead, and end with 0 (repeatable); running: its command has begun', collect)
      .option('--timeout <duration>', 'at most this long'),
    async () => (await load()).wait,
  );
  does(
    add(sandbox, 'explain <sandbox>', 'every check of its identity: verdict, evidence, and when it was made').addHelpText(
      'after',
      '\nEnds with 0 when every check passes, with 1 when one fails or could not be made.\n',
    ),
    async () => (await import('./commands/sandbox/explain.ts')).default,
  );
  does(
    add(sandbox, 'contain <sandbox>', 'keep it from doing harm; takes at least one of the flags')
      .option('--cut-network', 'it reaches nothing any more; the control plane still reaches it')
      .option('--pause', 'freeze what runs in it')
      .option('--kill', 'end what runs in it, without grace')
      .option('--revoke', 'take its identity away, and register it no more')
      .option('--reason <text>', 'why; shown to everyone whom the containment stops')
      .addHelpText(
        'after',
        '\nNeeds nothing of the sandbox: works on one that is not trusted, and on one that does not answer.\nNothing but release lifts it: start and resume are refused.\nEnds with 0 when all is done, with 6 when something is stored and not done yet.\n',
      ),
    async () => (await import('./commands/sandbox/contain.ts')).contain,
  );
  does(
    add(sandbox, 'release <sandbox>', 'undo contain: what the flags name, or all that is in force')
      .option('--cut-network', 'it reaches what it may again')
      .option('--pause', 'what runs in it goes on')
      .option('--kill', 'start it again')
      .option('--revoke', 'it may register again'),
    async () => (await import('./commands/sandbox/contain.ts')).release,
  );
  const exec = does(
    add(program, 'exec <sandbox> [command...]', 'run a command in a sandbox, and end with its status')
      .usage('[options] <sandbox> [command...]')
      .option('-t, --tty', 'give the command a terminal (the default at a terminal)')
      .option('-T, --no-tty', 'give it none')
      .option('-i, --interactive', 'with -d: keep stdin open for --attach')
      .option('-n, --no-stdin', 'do not read your stdin; in a loop over lines, which exec would read')
      .option('-d, --detach', "print the command's id and leave it running")
      .option('--attach <id>', 'connect with a command that runs already')
      .option('--linger <duration>', 'end it when it had no client and wrote nothing for so long; 0s: never (1h; with -d never)')
      .option('-u, --user <user>', 'uid[:gid], or names of the image')
      .option('-w, --workdir <path>', 'the directory that the command starts in')
      .option('-e, --env <name=value>', 'an environment variable (repeatable)', collect)
      .option('--env-file <file>', 'NAME=value lines (repeatable)', collect)
      .addHelpText('after', `${stdinHelp('exec -n web')}\nA sandbox that is named ls or kill: drover exec ls -- COMMAND\n`),
    async () => (await import('./commands/sandbox/exec.ts')).default,
  );
  if (!namesSandbox(argv)) {
    does(
      add(exec, 'ls <sandbox>', 'list its execs: those that run, and those that ended lately').alias('list'),
      async () => (await loadExecs()).ls,
    );
    does(
      add(exec, 'kill <sandbox> <exec>', 'send a signal to an exec and to what it started in its process group').option(
        '-s, --signal <signal>',
        'a name or number: KILL, SIGRTMIN+3, 15 (SIGTERM)',
      ),
      async () => (await loadExecs()).kill,
    );
  }
  does(
    add(program, 'attach <sandbox>', "connect with a sandbox's command; Ctrl-P Ctrl-Q lets go of it")
      .option('-n, --no-stdin', 'the command reads nothing of yours')
      .option('--no-replay', 'leave out what it wrote before'),
    async () => (await import('./commands/sandbox/exec.ts')).attach,
  );
  does(
    add(program, 'logs <sandbox>', 'what its command wrote')
      .option('-f, --follow', 'go on with what it writes')
      .option('-n, --tail <lines>', 'the last lines only')
      .option('--since <time>', 'what it wrote in this time (10m), or since this time (2026-11-29T10:00:00Z)'),
    async () => (await import('./commands/sandbox/logs.ts')).default,
  );
  does(
    add(program, 'top [sandbox...]', 'CPU, memory and processes of sandboxes; the busiest first')
      .option('--once', 'print once and end (the default in a pipe)')
      .option('--project <project>', 'of one project'),
    async () => (await import('./commands/sandbox/top.ts')).default,
  );
  does(
    add(program, 'cp <source> <target>', 'copy files in or out: SANDBOX:PATH on one side; - is a tar stream')
      .option('-a, --archive', 'keep owners (by number) and set-user-ID bits; trust what you copy out')
      .option('--chown <owner>', "USER[:GROUP] that the copy becomes; in a sandbox, the default is its command's user")
      .option('-L, --follow-link', 'copy what symbolic links point at')
      .addHelpText(
        'after',
        '\nDIR/. is the contents of a directory. What cannot be copied is named on stderr, and the status is then 1.\n',
      ),
    async () => (await import('./commands/sandbox/cp.ts')).default,
  );
  does(
    add(program, 'forward <sandbox> <ports...>', 'listen here for a port in the sandbox: 8080:80'),
    async () => (await import('./commands/sandbox/forward.ts')).default,
  );
}

function contextCommands(program: Command, add: Add, does: Does): void {
  const context = add(program, 'context', 'list and choose the control planes that commands talk to');
  const load = () => import('./commands/system/context.ts');
  does(add(context, 'ls', 'list contexts').alias('list'), async () => (await load()).ls);
  does(add(context, 'use <context>', 'make it the current context'), async () => (await load()).use);
  does(add(context, 'add <name>', 'keep --server, --token and --ca under a name'), async () => (await load()).add);
  does(add(context, 'rm <context>', 'remove it').alias('remove'), async () => (await load()).rm);
}

function listFlags(command: Command): Command {
  return command
    .option('--project <project>', 'of one project')
    .option('-l, --label <key=value>', 'with this label (repeatable)', collect)
    .option('--host <host>', 'on this host')
    .option('-a, --all', 'removed ones too')
    .option('-q, --quiet', 'names only');
}

function noWaitFlag(command: Command): Command {
  return command.option('--no-wait', 'do not wait for it');
}

function stopFlags(command: Command): Command {
  return noWaitFlag(command.option('-t, --grace <duration>', 'between SIGTERM and SIGKILL'));
}

function removeFlags(command: Command): Command {
  return noWaitFlag(
    command
      .option('-f, --force', 'even while it runs, without grace')
      .option('--grace <duration>', 'stop it first; wait this long between SIGTERM and SIGKILL'),
  );
}

/** The names that docker has for what `drover sandbox` and `drover image` do. */
function dockerCommands(program: Command, add: Add, does: Does): void {
  const sandbox = () => import('./commands/sandbox/sandbox.ts');
  const image = () => import('./commands/image/image.ts');
  does(listFlags(add(program, 'ps', 'list sandboxes, stopped ones too (sandbox ls)')), async () => (await sandbox()).ls);
  does(noWaitFlag(add(program, 'start <sandbox...>', 'start stopped sandboxes (sandbox start)')), async () => (await sandbox()).start);
  does(stopFlags(add(program, 'stop <sandbox...>', 'stop sandboxes (sandbox stop)')), async () => (await sandbox()).stop);
  does(noWaitFlag(add(program, 'kill <sandbox...>', 'stop sandboxes with SIGKILL (sandbox kill)')), async () => (await sandbox()).kill);
  does(removeFlags(add(program, 'rm <sandbox...>', 'remove sandboxes and their files (sandbox rm)')), async () => (await sandbox()).rm);
  does(
    add(program, 'inspect <sandbox>', 'show one sandbox as JSON (sandbox get)'),
    async () => (await sandbox()).get,
  ).setOptionValueWithSource('output', 'json', 'default');
  does(imageListFlags(add(program, 'images', 'list images (image ls)')), async () => (await image()).ls);
  does(pullFlags(add(program, 'pull <image>', 'pull an image on every host (image pull)')), async () => (await image()).pull);
  does(imageRemoveFlags(add(program, 'rmi <image...>', 'remove images (image rm)')), async () => (await image()).rm);
}

function identityCommands(program: Command, add: Add, does: Does): void {
  const identity = add(program, 'identity', 'list, show and evict identities of sandboxes').alias('id');
  const load = () => import('./commands/identity/identity.ts');
  does(add(identity, 'ls', 'list identities').alias('list'), async () => (await load()).ls);
  does(add(identity, 'get <identity>', 'show one, of a sandbox or a thumbprint'), async () => (await load()).get);
  does(
    add(identity, 'evict <identity>', 'take it away and end its session; the sandbox gets another at its next start'),
    async () => (await load()).evict,
  );
}

function hostCommands(program: Command, add: Add, does: Does): void {
  const host = add(program, 'host', 'list, add and change hosts');
  const load = () => import('./commands/host/host.ts');
  does(add(host, 'ls', 'list hosts').alias('list').option('-a, --all', 'removed ones too'), async () => (await load()).ls);
  does(add(host, 'get <host>', 'show one host'), async () => (await load()).get);
  does(
    add(host, 'token', 'make a token that lets a machine join')
      .option('--ttl <duration>', 'how long it can be used (1h)')
      .option('--uses <number>', 'how often (1)')
      .option('--label <key=value>', 'a label for the hosts that join with it (repeatable)', collect),
    async () => (await load()).token,
  );
  does(add(host, 'cordon <host>', 'place nothing more on it'), async () => (await load()).cordon);
  does(add(host, 'uncordon <host>', 'place on it again; ends a drain'), async () => (await load()).uncordon);
  does(
    add(host, 'drain <host>', 'place nothing more on it, and wait until it is empty').option('--stop', 'stop what cannot move'),
    async () => (await load()).drain,
  );
  does(
    add(host, 'rm <host>', 'remove it').alias('remove').option('-f, --force', 'even though it holds sandboxes; they are lost'),
    async () => (await load()).rm,
  );
}

function imageCommands(program: Command, add: Add, does: Does): void {
  const image = add(program, 'image', 'pull, list and remove images');
  const load = () => import('./commands/image/image.ts');
  does(pullFlags(add(image, 'pull <image>', 'pull an image on every host')), async () => (await load()).pull);
  does(imageListFlags(add(image, 'ls', 'list images').alias('list')), async () => (await load()).ls);
  does(imageRemoveFlags(add(image, 'rm <image...>', 'remove images').alias('remove')), async () => (await load()).rm);
  does(
    add(image, 'prune', 'remove what no sandbox uses')
      .option('--host <host>', 'on this host')
      .option('--older-than <duration>', 'and nobody used for so long'),
    async () => (await load()).prune,
  );
}

function volumeCommands(program: Command, add: Add, does: Does): void {
  const volume = add(program, 'volume', 'create, list and remove volumes, which outlive sandboxes');
  const load = () => import('./commands/volume/volume.ts');
  does(
    add(volume, 'create <name>', 'create a volume; print its name')
      .requiredOption('--size <bytes>', 'how much it can hold, such as 1g')
      .option('--host <host>', 'on this host; sandboxes with the volume run there'),
    async () => (await load()).create,
  );
  does(add(volume, 'ls', 'list volumes').alias('list').option('--host <host>', 'on this host'), async () => (await load()).ls);
  does(add(volume, 'get <volume>', 'show one volume').alias('inspect'), async () => (await load()).get);
  does(add(volume, 'rm <volume...>', 'remove volumes with everything in them').alias('remove'), async () => (await load()).rm);
}

function pullFlags(command: Command): Command {
  return command.option('--host <host>', 'on this host').option('--insecure', 'allow plain HTTP and certificates that do not verify');
}

function imageListFlags(command: Command): Command {
  return command.option('--host <host>', 'on this host');
}

function imageRemoveFlags(command: Command): Command {
  return command.option('--host <host>', 'on this host');
}
