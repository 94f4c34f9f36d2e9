import { writeFileSync } from 'node:fs';
import type { Reporter, TestModule, Vitest } from 'vitest/node';

/** Writes `passed failed` of all projects to $DROVER_TEST_COUNTS. A skipped test counts as failed unless -t excluded it. */
export default class CountReporter implements Reporter {
  #filtered = false;

  onInit(vitest: Vitest): void {
    this.#filtered = vitest.config.testNamePattern !== undefined;
  }

  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly unknown[]): void {
    let passed = 0;
    let failed = unhandledErrors.length;
    for (const testModule of modules) {
      let inModule = 0;
      for (const test of testModule.children.allTests()) {
        const { state } = test.result();
        if (state === 'passed') {
          passed++;
        } else if (state === 'failed' || !this.#filtered) {
          failed++;
          inModule++;
        }
      }
      // A module that failed to load has no failed test, so it counts itself.
      if (inModule === 0 && testModule.state() === 'failed') failed++;
    }
    const path = process.env['DROVER_TEST_COUNTS'];
    if (path !== undefined) writeFileSync(path, `${passed} ${failed}\n`);
  }
}
