import { DroverError } from '@drover/foundation';
import type { Cli } from '../cli.ts';

/**
 * The scripts pass the words of the line as quoted arguments and insert the printed values. They evaluate no word. They run the program
 * that printed them, not the program that the line names, which can be any file.
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

/** R-3: prints the completion script for a shell. @throws {DroverError} invalid-argument for an unknown shell */
export default function completion(cli: Cli, [shell]: readonly [string]): Promise<void> {
  const script = Object.hasOwn(scripts, shell) ? scripts[shell] : undefined;
  if (script === undefined) {
    throw new DroverError('invalid-argument', `there is no completion for ${JSON.stringify(shell)}`, {
      hint: `drover completion ${Object.keys(scripts).join('|')}`,
    });
  }
  // The launcher sets DROVER_LAUNCHER. Without it the shell finds drover in PATH.
  cli.out.stdout.write(script(quoted(cli.env['DROVER_LAUNCHER'] ?? 'drover')));
  return Promise.resolve();
}

/** Quotes for bash, zsh and fish. Only fish treats a backslash specially inside single quotes. */
function quoted(program: string): string {
  return /^[A-Za-z0-9_./+-]+$/.test(program) ? program : `'${program.replaceAll("'", `'"'"'`)}'`;
}
