import type { RootCommand } from '@bomb.sh/tab';
import tab from '@bomb.sh/tab/commander';
import { DroverError } from '@drover/foundation';
import type { DroverClient } from '@drover/sdk';
import { connect } from './context/connect.ts';
import { completionTimeoutMs } from './limits.ts';
import { buildProgram } from './program.ts';
import { sandboxLabel } from './commands/sandbox/show.ts';

const shells = ['bash', 'zsh', 'fish'];

/** What the script uses of the package bash-completion, for shells without it. */
const bashWords = `if ! declare -F _get_comp_words_by_ref > /dev/null; then
    _get_comp_words_by_ref() {
        words=("\${COMP_WORDS[@]}") cword=$COMP_CWORD
        cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]}
    }
fi
`;

interface Value {
  readonly value: string;
  readonly description: string;
}

interface Values {
  readonly sandboxes: readonly Value[];
  readonly hosts: readonly Value[];
  readonly images: readonly Value[];
}

/** `completion SHELL` prints the script; `complete -- WORDS…` is what the script calls. */
export async function complete(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  // With no handler to run: only the names are wanted.
  const program = buildProgram(async () => undefined, { completionStub: false });
  const root = tab(program, { completionCommandName: 'completion' });
  if (argv[0] === 'completion') {
    const [, shell] = argv;
    if (shell === '--help' || shell === '-h') {
      process.stdout.write('Usage: drover completion bash|zsh|fish\n\nFor bash: drover completion bash >> ~/.bashrc\n');
      return 0;
    }
    if (shell === undefined || argv.length > 2 || !shells.includes(shell)) {
      throw new DroverError(
        'invalid-argument',
        shell === undefined
          ? 'no shell is named'
          : argv.length > 2
            ? 'there is more than one shell'
            : `there is no completion for ${JSON.stringify(shell)}`,
        {
          hint: `drover completion ${shells.join('|')}`,
        },
      );
    }
    if (shell === 'bash') process.stdout.write(bashWords);
    root.setup('drover', 'drover', shell);
    return 0;
  }
  const words = argv.slice(argv[1] === '--' ? 2 : 1);
  const values = await names(words, env);
  addValues(root, values);
  root.parse([...words]);
  return 0;
}

function addValues(root: RootCommand, values: Values): void {
  const offer = (list: readonly Value[]) =>
    function (this: unknown, say: (value: string, description: string) => void): void {
      for (const { value, description } of list) say(value, description);
    };
  for (const command of [root, ...root.commands.values()]) {
    for (const [name, argument] of command.arguments) {
      if (name === 'sandbox' || name === 'identity') argument.handler = offer(values.sandboxes);
      else if (name === 'host') argument.handler = offer(values.hosts);
      else if (name === 'image') argument.handler = offer([...values.images, { value: 'host', description: "the host's own system" }]);
    }
    for (const [name, option] of command.options) {
      if (name === 'host') option.handler = offer(values.hosts);
    }
  }
}

const none: Values = { sandboxes: [], hosts: [], images: [] };

/** What there is now; nothing when nobody answers in time: a shell must not hang at a key. */
async function names(words: readonly string[], env: NodeJS.ProcessEnv): Promise<Values> {
  let client: DroverClient | undefined;
  try {
    ({ client } = await connect(env, {}));
    const signal = AbortSignal.timeout(completionTimeoutMs);
    const wantsImages = words.includes('image') || words[0] === 'run';
    const [sandboxes, hosts, images] = await Promise.all([
      client.sandboxes.list({ signal }),
      client.hosts.list({ signal }),
      wantsImages ? client.images.list({ signal }).catch(() => undefined) : undefined,
    ]);
    return {
      sandboxes: sandboxes.map((s) => ({ value: sandboxLabel(s), description: s.spec?.image ?? '' })),
      hosts: hosts.map((h) => ({ value: h.name, description: h.id })),
      images: [...new Set(images?.images.map((i) => i.image?.reference ?? ''))]
        .filter((i) => i !== '')
        .map((value) => ({ value, description: '' })),
    };
  } catch {
    // Completing commands and flags needs no control plane.
    return none;
  } finally {
    client?.close();
  }
}
