import { LineCounter, parseDocument, type Document } from 'yaml';
import type { z } from 'zod';
import { DroverError, reasonOf } from './errors.ts';
import { readAtMost } from './files.ts';
import { maxConfigBytes } from './limits.ts';

/**
 * Reads a YAML configuration file and parses it by the schema. An empty file is an empty mapping.
 * @throws {DroverError} invalid-config with file, line, column and field of the first mistake
 */
export async function loadConfig<T>(path: string, schema: z.ZodType<T>): Promise<T> {
  let text: string;
  try {
    text = (await readAtMost(path, maxConfigBytes)).toString('utf8');
  } catch (error) {
    throw new DroverError('invalid-config', `the configuration file ${path} cannot be read: ${reasonOf(error)}`, {
      hint: 'name an existing file with --config',
      cause: error,
    });
  }
  return parseConfig(path, text, schema);
}

/** As loadConfig, for a text that was read from `path`. */
export function parseConfig<T>(path: string, text: string, schema: z.ZodType<T>): T {
  if (Buffer.byteLength(text) > maxConfigBytes) {
    throw new DroverError('invalid-config', `the configuration file ${path} has more than ${maxConfigBytes} bytes`, {
      hint: 'is it the right file?',
    });
  }
  const lines = new LineCounter();
  // `uniqueKeys` is the default: a repeated field is a mistake. An honest file has few aliases.
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const [broken] = document.errors;
  if (broken !== undefined) throw mistake(path, lines, broken.pos[0], broken.message);
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: 100 }) ?? {};
  } catch (error) {
    throw mistake(path, lines, 0, error instanceof Error ? error.message : String(error));
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const field = issue?.path ?? [];
  // An unknown field is reported at its own position, not at that of its mapping.
  const at = issue?.code === 'unrecognized_keys' ? [...field, issue.keys[0] ?? ''] : field;
  throw mistake(path, lines, offsetOf(document, at), `${at.length === 0 ? 'the file' : at.join('.')}: ${issue?.message ?? 'is not valid'}`);
}

function mistake(path: string, lines: LineCounter, offset: number, what: string): DroverError {
  const { line, col } = lines.linePos(offset);
  return new DroverError('invalid-config', `${path}:${line}:${col}: ${what}`, { hint: 'correct the file; nothing was changed' });
}

/** The position of a field in the text, or of the nearest field above it that is present. */
function offsetOf(document: Document, field: readonly PropertyKey[]): number {
  for (let length = field.length; length > 0; length--) {
    const node: unknown = document.getIn(field.slice(0, length), true);
    if (typeof node === 'object' && node !== null && 'range' in node && Array.isArray(node.range)) return Number(node.range[0]);
  }
  return 0;
}
