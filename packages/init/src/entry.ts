import { becomeFlag, stepFlag } from './own-program.ts';

/** `init.cjs [run directory]` is PID 1, `init.cjs --step NAME` a built-in step, `--become …` a user with groups. Each loads only its own part. */
if (process.argv[2] === stepFlag) {
  void import('./built-in-steps/index.ts').then(async ({ runBuiltInStep }) => {
    process.exitCode = await runBuiltInStep(process.argv[3] ?? '');
  });
} else if (process.argv[2] === becomeFlag) {
  void import('./become.ts').then(({ become }) => process.exit(become(process.argv.slice(3))));
} else {
  void import('./pid1/index.ts').then(({ main }) => main(process.argv[2] ?? '/.drover/run'));
}
