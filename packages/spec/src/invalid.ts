import { clip, DroverError } from '@drover/foundation';

/** The refusal of an input: what is wrong with it, and what to write instead. */
export function invalid(message: string, hint: string, cause?: unknown): DroverError {
  return new DroverError('invalid-argument', message, { hint, cause });
}

/** At most 100 characters of an input, in quotes. */
export function quote(text: string): string {
  return JSON.stringify(clip(text));
}
