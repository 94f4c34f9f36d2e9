import { fromBinary } from '@bufbuild/protobuf';
import { init } from '@drover/protocol';
import { pathBelow, placeFile } from './files.ts';
import type { Surroundings } from './surroundings.ts';

const defaultMode = 0o644;

/** Step `config`: files with their content and mode. */
export function placeConfig(input: Uint8Array, { home }: Surroundings): number {
  for (const file of fromBinary(init.ConfigStepSchema, input).files) {
    placeFile(pathBelow(home, file.path), file.content, file.mode === 0 ? defaultMode : file.mode);
  }
  return 0;
}
