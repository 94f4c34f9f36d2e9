import { spawn, type IPty } from '@lydell/node-pty';
import { stripVTControlCharacters } from 'node:util';
import { eventually, launcher, type TestDrover } from './drover.ts';

export interface TerminalOptions {
  /** The program to run instead of `drover`. */
  readonly program?: string;
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** `drover ARGS…`, or another program, on a real pseudoterminal. */
export class Terminal implements Disposable {
  readonly #pty: IPty;
  #output = '';
  #code: number | undefined;

  constructor(
    drover: TestDrover,
    args: readonly string[],
    size: { readonly columns: number; readonly rows: number },
    { program = launcher, cwd, env }: TerminalOptions = {},
  ) {
    this.#pty = spawn(program, [...args], {
      cols: size.columns,
      rows: size.rows,
      name: 'xterm',
      ...(cwd !== undefined && { cwd }),
      env: { ...process.env, ...drover.environment, ...env },
    });
    this.#pty.onData((data) => (this.#output += data));
    this.#pty.onExit(({ exitCode }) => (this.#code = exitCode));
  }

  get output(): string {
    return this.#output;
  }

  type(keys: string): void {
    this.#pty.write(keys);
  }

  kill(signal: string): void {
    this.#pty.kill(signal);
  }

  resize(columns: number, rows: number): void {
    this.#pty.resize(columns, rows);
  }

  /** Waits until the screen has shown the text. @param since the offset in `output` at which the search starts */
  async shows(text: string | RegExp, since = 0): Promise<void> {
    await this.#until(`the terminal shows ${String(text)}`, () => {
      const shown = stripVTControlCharacters(this.#output.slice(since));
      return typeof text === 'string' ? shown.includes(text) : text.test(shown);
    });
  }

  /** Waits until the program exits, and returns its exit code. */
  async exit(): Promise<number> {
    await this.#until('the program at the terminal ends', () => this.#code !== undefined);
    return this.#code ?? -1;
  }

  async #until(description: string, condition: () => boolean): Promise<void> {
    await eventually(description, condition).catch((error: unknown) => {
      throw new Error(`${String(error)}; it shows ${JSON.stringify(this.#output.slice(-2_000))}`);
    });
  }

  [Symbol.dispose](): void {
    if (this.#code === undefined) this.#pty.kill('SIGKILL');
  }
}
