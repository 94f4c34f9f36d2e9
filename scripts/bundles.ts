/** Builds what is shipped as one file: init, which runs in every sandbox. */
import { buildInitBundle } from '../packages/init/src/bundle.ts';

await buildInitBundle();
