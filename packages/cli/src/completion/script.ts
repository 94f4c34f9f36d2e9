import { DroverError } from '@drover/foundation';
import type { Cli } from '../cli.ts';

/**
 * The scripts hand the words of the line over as arguments, quoted, and insert what comes back; no script evaluates a word. They run
 * the program that printed them, not the one that the line names: a line can name any file.
 */
const scripts: Readonly<Record<string, (program: string) => string>> = {
  bash: (program) => `# Completion of drover for bash: source <(drover completion bash)
_drover() {
  local line
  COMPREPLY=()
  while IFS= read -r line; do
    case $line in
      :files) compopt -o default 2>/dev/null ;;
      :nospace) compopt -o nospace 2>/dev/null ;;
      *) COMPREPLY+=("\${line%%$'\\t'*}") ;;
    esac
  done < <(${program} complete bash "\${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -F _drover drover
`,
  zsh: (program) => `#compdef drover
# Completion of drover for zsh: source <(drover completion zsh)
_drover() {
  local line
  local -a values shown suffix
  local files=0
  while IFS= read -r line; do
    case $line in
      :files) files=1 ;;
      :nospace) suffix=(-S '') ;;
      *)
        values+=("\${line%%$'\\t'*}")
        if [[ -n \${line#*$'\\t'} ]]; then shown+=("\${line%%$'\\t'*}  -- \${line#*$'\\t'}"); else shown+=("\${line%%$'\\t'*}"); fi
        ;;
    esac
  done < <(${program} complete words "\${(@Q)words[2,CURRENT-1]}" "\${(Q)PREFIX}" 2>/dev/null)
  if (( $#values )); then compadd -l -d shown "\${suffix[@]}" -a values; fi
  if (( files )); then _files; fi
}
if ! (( $+functions[compdef] )); then
  autoload -Uz compinit
  compinit
fi
compdef _drover drover
`,
  fish: (program) => `# Completion of drover for fish: drover completion fish | source
function __drover_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in (${program} complete words $words[2..] "$current" 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path "$current"
            case :nospace
            case '*'
                printf '%s\\n' $line
        end
    end
end
complete -c drover -e
complete -c drover -f -a '(__drover_complete)'
`,
};

/** R-3: prints the script of a shell. @throws {DroverError} invalid-argument for another shell */
export default function completion(cli: Cli, [shell]: readonly [string]): Promise<void> {
  const script = Object.hasOwn(scripts, shell) ? scripts[shell] : undefined;
  if (script === undefined) {
    throw new DroverError('invalid-argument', `there is no completion for ${JSON.stringify(shell)}`, {
      hint: `drover completion ${Object.keys(scripts).join('|')}`,
    });
  }
  // Set by the launchers; a program that was started without one is looked up in PATH.
  cli.out.stdout.write(script(quoted(cli.env['DROVER_LAUNCHER'] ?? 'drover')));
  return Promise.resolve();
}

/** In single quotes, which bash, zsh and fish read alike but for the two characters that fish escapes in them. */
function quoted(program: string): string {
  return /^[A-Za-z0-9_./+-]+$/.test(program) ? program : `'${program.replaceAll("'", `'"'"'`)}'`;
}
