import { Option, type Command } from 'commander';
import { collect, type Definition } from '../../definition.ts';

// In words, since the help is the same for every user.
const dataDefault = '/var/lib/drover; ~/.local/share/drover when not root';
const stateDefault = '/var/lib/drover/host; ~/.local/share/drover/host when not root';

export function defineMachineCommands(define: Definition): void {
  const { program } = define;
  //
  define.command(
    program,
    'up',
    'start a control plane and a host on this machine',
    async () => (await import('../../up/up.ts')).default,
    (command) =>
      serverFlags(hostFlags(configFlag(command)))
        .option('--no-agent', 'start the control plane only')
        .option('--stop-sandboxes', 'stop the sandboxes on exit; by default they keep running'),
  );
  define.command(
    program,
    'serve',
    'run the control plane',
    async () => (await import('./serve.ts')).default,
    (command) => serverFlags(configFlag(command)).option('--store <url>', 'use postgres://… instead of SQLite in the data directory'),
  );
  const agent = define.command(
    program,
    'agent',
    'run the host agent',
    async () => (await import('./agent.ts')).default,
    (command) =>
      stateFlag(hostFlags(configFlag(command))).option(
        '--link <address>',
        "HOST:PORT of the control plane's link listener, if it has changed since the join",
      ),
  );
  define.command(
    agent,
    'join <url>',
    'make this machine a host of a control plane, and run its agent',
    async () => (await import('./agent.ts')).join,
    (command) => stateFlag(hostFlags(command)).option('--no-run', 'join without running the agent'),
  );
}

/** Commands about this program and this machine's state. */
export function defineProgramCommands(define: Definition): void {
  const { program } = define;
  define.command(
    program,
    'doctor',
    'check this machine or a host, and say how to fix what is wrong',
    async () => (await import('../../doctor/command.ts')).default,
    (command) =>
      command
        .option('--host <host>', 'check a host instead of this machine')
        .option('--data <directory>', `the data directory to check (that of the running up, or ${dataDefault})`)
        .option('--listen <address>', 'HOST:PORT that up would listen on (that of the running up, or 127.0.0.1:7443)'),
  );
  define.command(
    program,
    'version',
    'show the versions of this program and of the control plane',
    async () => (await import('./version.ts')).default,
  );
  define.command(
    program,
    'completion <shell>',
    'print the completion script for bash, zsh or fish',
    async () => (await import('../../completion/script.ts')).default,
    (command) => command.addHelpText('after', completionHelp),
  );
}

const completionHelp = `
bash:  source <(drover completion bash)                                     in ~/.bashrc
zsh:   source <(drover completion zsh)                                      in ~/.zshrc
fish:  drover completion fish > ~/.config/fish/completions/drover.fish
`;

export function defineContextCommands(define: Definition): void {
  const context = define.group('context', 'list and choose the control planes that commands talk to');
  const load = () => import('./context.ts');
  define.command(context, 'ls', 'list contexts', async () => (await load()).ls).alias('list');
  define.command(context, 'use <context>', 'make a context the current one', async () => (await load()).use);
  define.command(context, 'add <name>', 'save --server, --token and --ca as a context', async () => (await load()).add);
  define.command(context, 'rm <context>', 'remove a context', async () => (await load()).rm).alias('remove');
}

export function defineEventCommands(define: Definition): void {
  define.command(
    define.program,
    'events',
    'show events',
    async () => (await import('./events.ts')).default,
    (command) =>
      command
        .option('-f, --follow', 'wait for new events')
        .option('--since <id>', 'only events after this one; 0 starts with the oldest event')
        .addOption(
          new Option('--kind <kinds>', 'only events of these kinds (repeatable, or separated by commas)')
            .choices(['sandbox', 'host', 'session', 'identity', 'init', 'network'])
            .argParser(collect),
        )
        .option('--tail <number>', 'start with the last NUMBER events')
        .option('--subject <sandbox or host>', 'only events of this sandbox or host, by name or id'),
  );
}

function configFlag(command: Command): Command {
  return command.option('--config <file>', 'YAML file with any of these flags, such as `pool: 10.50.0.0/16`');
}

function stateFlag(command: Command): Command {
  return command.option('--state <directory>', `the directory of the host's state (${stateDefault})`);
}

function serverFlags(command: Command): Command {
  return command
    .option('--data <directory>', `the directory of all data (${dataDefault})`)
    .option('--listen <address>', 'HOST:PORT of the API', '127.0.0.1:7443')
    .option('--link-listen <address>', 'HOST:PORT that hosts connect to (the API address with the next port)')
    .option('--public-host <name>', 'the name or address that hosts and clients dial, if it differs')
    .option('--host-ttl <duration>', 'a host that is silent for this long is down (30s)')
    .option('--lost-grace <duration>', 'a host that is down for this long loses its sandboxes (1m)');
}

function hostFlags(command: Command): Command {
  return command
    .option('--name <name>', "the host's name (the machine's)")
    .option('--label <key=value>', 'a label of the host (repeatable)', collect)
    .option('--zone <zone>', "the host's zone")
    .option('--pool <network>', 'addresses for its sandboxes (10.213.0.0/16)')
    .option('--cpus <number>', 'CPUs to offer to sandboxes, fewer or more than the machine has: 64, 1.5 (all)')
    .option('--runtime-program <program>', 'runc, crun, or a path')
    .option('--allow-mount <directory>', 'a directory that sandboxes may mount (repeatable)', collect)
    .option('--reconnect-max <duration>', 'the longest wait between two attempts to reach the control plane (30s)')
    .option(
      '--standbys <number>',
      'at most this many prestarted sandboxes, 20 MB each, which make starts faster (one per 2 GB of memory, at most 16)',
    )
    .option('--insecure-registry <host>', 'HOST[:PORT] that may use plain HTTP or an invalid certificate (repeatable)', collect)
    .option('--registry-mirror <registry=mirror>', 'try MIRROR before REGISTRY (repeatable)', collect)
    .option('--registry-credentials <file>', 'registry credentials as docker login writes them, credential helpers included');
}
