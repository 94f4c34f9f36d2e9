import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { DroverClient } from '@drover/sdk';

/** What the user's program prints, and everything that runs it is measured until the first byte of it. */
export const program = ['/bin/busybox', 'echo', 'first'] as const;

/** A way to run the program: milliseconds until its first byte, and what takes away what is left. */
export interface Way {
  readonly name: string;
  /** How often before it is measured. The code of a server is compiled in its first ten creates or so; a program is a new one each time. */
  readonly warmUps: number;
  start(): Promise<Started>;
}

export interface Started {
  readonly ms: number;
  readonly tidy: () => Promise<void>;
}

/** Through the API, over one connection that stands, as a program with the SDK does it. */
export function throughApi(name: string, client: DroverClient, image: string): Way {
  return {
    name,
    warmUps: 5,
    async start() {
      const began = performance.now();
      const { id } = await client.sandboxes.create({ spec: { image, command: [...commandFor(image)] } });
      const main = client.sandboxes.exec(id, { execId: 'main', replay: true });
      main.stderr.resume();
      await Promise.race([once(main.stdout, 'data'), main.exit.then(() => undefined)]);
      const ms = performance.now() - began;
      await main.exit;
      return {
        ms,
        tidy: async () => {
          await client.sandboxes.remove(id);
          await client.sandboxes.waitFor(id, ['deleted'], { timeoutMs: 60_000 });
        },
      };
    },
  };
}

/** As a person types it: a program with its arguments, until it prints. */
export function commandLine(
  name: string,
  argv: () => readonly string[],
  env: NodeJS.ProcessEnv,
  tidy: (argv: readonly string[]) => Promise<void>,
): Way {
  return {
    name,
    warmUps: 2,
    async start() {
      const words = argv();
      const began = performance.now();
      const child = spawn(words[0] ?? '', words.slice(1), { env, stdio: ['ignore', 'pipe', 'pipe'] });
      let stderr = '';
      child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
      const closed = once(child, 'close');
      let first: number | undefined;
      child.stdout.on('data', () => (first ??= performance.now()));
      const [code] = await closed;
      if (code !== 0 || first === undefined) throw new Error(`${words.join(' ')} ended with ${String(code)}: ${stderr.slice(0, 500)}`);
      return { ms: first - began, tidy: async () => await tidy(words) };
    },
  };
}

export function commandFor(image: string): readonly string[] {
  // The host's own echo: `host` need not have busybox.
  return image === 'host' ? ['/bin/echo', 'first'] : program;
}
