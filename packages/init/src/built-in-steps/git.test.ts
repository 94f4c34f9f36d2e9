import { describe, expect, it } from 'vitest';
import { complaintOf } from './git.ts';

describe("what an error shows of git's words", () => {
  it.each([
    [
      'the reason that ssh gave, without the advice after it',
      `Cloning into '/root/x'...
git@example.org: Permission denied (publickey).
fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists.
`,
      'git@example.org: Permission denied (publickey).; fatal: Could not read from remote repository.',
    ],
    [
      'the reason that the remote gave',
      `remote: Repository not found.
fatal: repository 'https://example.org/x.git/' not found
`,
      "remote: Repository not found.; fatal: repository 'https://example.org/x.git/' not found",
    ],
    [
      'an error with hints after it',
      `error: pathspec 'nowhere' did not match any file(s) known to git
hint: Did you mean main?
`,
      "error: pathspec 'nowhere' did not match any file(s) known to git",
    ],
    [
      'no password',
      "fatal: Authentication failed for 'https://me:secret@example.org/x/'\n",
      "fatal: Authentication failed for 'https://example.org/x/'",
    ],
    ['the words of another program that ends without a fatal line', 'sh: 1: ssh: not found\n', 'sh: 1: ssh: not found'],
    ['nothing of nothing', '\n', ''],
  ])('is %s', (_, stderr, complaint) => {
    expect(complaintOf(stderr)).toBe(complaint);
  });

  it('is bounded', () => {
    expect(complaintOf('x'.repeat(100_000)).length).toBeLessThan(1_100);
  });
});
