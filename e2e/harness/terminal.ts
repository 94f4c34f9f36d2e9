import { spawn, type IPty } from '@lydell/node-pty';
import { join } from 'node:path';
import { eventually, repository, type TestDrover } from './drover.ts';

/** `drover ARGS…` at a real terminal, as a person has it. */
export class Terminal implements Disposable {
  readonly #pty: IPty;
  #output = '';
  #code: number | undefined;

  constructor(drover: TestDrover, args: readonly string[], size: { readonly columns: number; readonly rows: number }) {
    this.#pty = spawn(join(repository, 'drover'), [...args], {
      cols: size.columns,
      rows: size.rows,
      name: 'xterm',
      env: { ...process.env, ...drover.environment },
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

  resize(columns: number, rows: number): void {
    this.#pty.resize(columns, rows);
  }

  /** Waits until the screen has shown the text. */
  async shows(text: string | RegExp): Promise<void> {
    await this.#until(`the terminal shows ${String(text)}`, () =>
      typeof text === 'string' ? this.#output.includes(text) : text.test(this.#output),
    );
  }

  /** Waits for the program's end; gives its exit code. */
  async exit(): Promise<number> {
    await this.#until('the program at the terminal ends', () => this.#code !== undefined);
    return this.#code ?? -1;
  }

  async #until(what: string, condition: () => boolean): Promise<void> {
    await eventually(what, condition).catch((error: unknown) => {
      throw new Error(`${String(error)}; it shows ${JSON.stringify(this.#output.slice(-2_000))}`);
    });
  }

  [Symbol.dispose](): void {
    if (this.#code === undefined) this.#pty.kill('SIGKILL');
  }
}
