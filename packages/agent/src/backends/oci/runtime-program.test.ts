import { expect, test } from 'vitest';
import { messageOf, refusedMount } from './runtime-program.ts';

test('what a runtime program logs becomes a sentence', () => {
  const line = 'time="2026-11-27T21:17:57Z" level=error msg="runc run failed: failed to write \\"4194320\\":\\ninvalid argument"';
  expect(messageOf(line)).toBe('runc run failed: failed to write "4194320": invalid argument');
  expect(messageOf('cannot open the bundle')).toBe('cannot open the bundle');
  expect(messageOf('msg="\\x00"')).toBe('msg="\\x00"');
});

test.each([
  [
    'mount /proc/self/fd/10:/etc/hostname (via /proc/self/fd/11), flags: 0x5006: not a directory',
    'of the two, one is a directory and the other a file',
  ],
  ['open o_path procfd: open /state/root/etc/hostname: not a directory', 'a part of that path is a file in the sandbox'],
  ['"/state/root/proc/x" cannot be mounted because it is inside /proc', 'it leads into /proc'],
  ['"/state/root/proc" cannot be mounted because it is not of type proc', 'it leads into /proc'],
])('a mount that the image has no place for is refused in words: %s', (why, reason) => {
  const message = `runc run failed: error during container init: error mounting "/state/mapped/volume0" to rootfs at "/etc/hostname": ${why}`;
  expect(refusedMount(message)).toMatchObject({
    code: 'failed-precondition',
    message: `nothing can be mounted on /etc/hostname: ${reason}`,
  });
});

test('other failures of mounts stay as runc logs them', () => {
  expect(refusedMount('error mounting "/a" to rootfs at "/b": permission denied')).toBeUndefined();
  expect(refusedMount('runc run failed: out of memory')).toBeUndefined();
});
