import { join } from 'node:path';
import { fromBinary } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';
import { pathBelow, placeFile, placePrivateDirectory, textOf, type Surroundings } from './files.ts';

/** ssh(1) requires it of private keys. */
const privateMode = 0o600;

/** Step `ssh`: keys, known hosts and the configuration of the user's ssh. A key's path without a slash is in `~/.ssh`. */
export function setUpSsh(input: Uint8Array, { home }: Surroundings): number {
  const step = fromBinary(init.SshStepSchema, input);
  const directory = join(home, '.ssh');
  placePrivateDirectory(directory);
  for (const { path, content } of step.keys) {
    placeFile(pathBelow(path.includes('/') ? home : directory, path), withNewline(content), privateMode);
  }
  if (step.knownHosts.length > 0) {
    const path = join(directory, 'known_hosts');
    placeFile(path, Buffer.from(merged(textOf(path), step.knownHosts)), privateMode);
  }
  if (step.config !== '') placeFile(join(directory, 'config'), withNewline(Buffer.from(step.config)), privateMode);
  return 0;
}

/** The existing lines, followed by the new ones. */
function merged(text: string, lines: readonly string[]): string {
  const all = [...text.split('\n'), ...lines.flatMap((line) => line.split('\n'))].map((line) => line.trimEnd());
  const kept = all.filter((line, index) => line !== '' && all.indexOf(line) === index);
  return kept.map((line) => `${line}\n`).join('');
}

/** ssh refuses a key without a final newline. */
function withNewline(content: Uint8Array): Uint8Array {
  return content.at(-1) === 0x0a ? content : Buffer.concat([content, Buffer.from('\n')]);
}
