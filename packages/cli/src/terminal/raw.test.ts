import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

const run = promisify(execFile);
const raw = join(import.meta.dirname, 'raw.ts');

/** Runs code with a raw terminal under script(1), and gives what it printed and the terminal's settings after it. */
async function underTerminal(code: string): Promise<{ printed: string; cooked: boolean }> {
  const program = `import { RawTerminal } from '${raw}'; const t = new RawTerminal(process.stdin, process.stdout); t.enter(); ${code}`;
  const command = `${process.execPath} --disable-warning=ExperimentalWarning --input-type=module-typescript -e "$CODE" 2>&1; echo; stty -a`;
  const { stdout } = await run('script', ['-qec', command, '/dev/null'], { env: { ...process.env, CODE: program }, timeout: 20_000 });
  const settings = stdout.slice(stdout.lastIndexOf('speed'));
  return {
    printed: stdout,
    cooked: ['icanon', 'echo', 'isig', 'opost'].every((name) => new RegExp(`(?:^|\\s)${name}(?:\\s|$)`, 'm').test(settings)),
  };
}

test('the terminal is raw while it is entered (what follows could not fail otherwise)', async () => {
  const { printed } = await underTerminal(`const { execFileSync } = await import('node:child_process');
    console.log('during' + execFileSync('stty', ['-a'], { stdio: ['inherit', 'pipe', 'inherit'] }));`);
  expect(printed.slice(printed.indexOf('during'), printed.lastIndexOf('speed'))).toMatch(/ -icanon/);
});

test('what a program draws reaches the terminal as it is, and a line of ours ends at its beginning', async () => {
  const { printed } = await underTerminal(`process.stdout.write('a\\nb\\r\\nc');
    const { lineEnd } = await import('${raw}'); process.stdout.write(JSON.stringify(lineEnd()));`);
  expect(printed).toContain('a\nb\r\nc"\\r\\n"');
});

test.each([
  ['its end', 't[Symbol.dispose](); process.exit(0)'],
  ['process.exit', 'process.exit(3)'],
  ['an uncaught error', "throw new Error('bang')"],
  ['an unhandled rejection', "await Promise.reject(new Error('bang'))"],
  ['SIGTERM', "process.kill(process.pid, 'SIGTERM'); await new Promise((r) => setTimeout(r, 5000))"],
  ['SIGINT', "process.kill(process.pid, 'SIGINT'); await new Promise((r) => setTimeout(r, 5000))"],
])('R-3: the terminal is given back after %s', async (_, code) => {
  expect((await underTerminal(code)).cooked).toBe(true);
});
