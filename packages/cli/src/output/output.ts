import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { ScalarType, toJson, type DescField, type DescMessage, type JsonValue, type MessageShape } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { lineEnd } from '../terminal/index.ts';
import { table, type Column } from './table.ts';

/** How a command says things: results on stdout, progress and errors on stderr; JSON or text. */
export class Output {
  readonly json: boolean;
  readonly stdout: Writable;
  readonly stderr: Writable;
  /** stderr is a terminal: progress may redraw. */
  readonly interactive: boolean;

  constructor(options: { readonly json: boolean; readonly stdout: Writable; readonly stderr: Writable; readonly interactive: boolean }) {
    this.json = options.json;
    this.stdout = options.stdout;
    this.stderr = options.stderr;
    this.interactive = options.interactive;
  }

  /** Lines of the result. */
  line(text: string): void {
    this.stdout.write(`${withoutControls(text)}\n`);
  }

  /** A line about the work, for people; on stderr, in both formats. */
  note(text: string, hint?: string): void {
    this.stderr.write(`drover: ${text.replace(/\p{Cc}+/gu, ' ')}${lineEnd()}`);
    if (hint !== undefined) this.stderr.write(`  hint: ${oneLine(hint)}${lineEnd()}`);
  }

  /** One JSON document. */
  object(value: unknown): void {
    this.stdout.write(`${json(value, 2)}\n`);
  }

  /** One line of NDJSON. */
  record(value: unknown): void {
    this.stdout.write(`${json(value)}\n`);
  }

  /** A list: a JSON array, or a table. `none` is said, on stderr, when a person would see an empty table. */
  list<T>(items: readonly T[], toValue: (item: T) => unknown, columns: readonly Column<T>[], none: string): void {
    if (this.json) {
      this.object(items.map(toValue));
    } else if (items.length === 0) {
      this.note(none);
    } else {
      this.line(table(items, columns));
    }
  }

  /** Bytes to stdout, waiting while its reader is slow; once the stream is gone they go nowhere. @throws what broke the stream */
  async bytes(data: Uint8Array, stream: 'stdout' | 'stderr' = 'stdout'): Promise<void> {
    const to = stream === 'stdout' ? this.stdout : this.stderr;
    if (to.destroyed || to.write(data) || to.destroyed) return;
    const waiting = new AbortController();
    const { signal } = waiting;
    try {
      // A closed stream never drains.
      await Promise.race([once(to, 'drain', { signal }), once(to, 'close', { signal })]);
    } finally {
      // Takes away the listeners of the one that did not come.
      waiting.abort();
    }
  }

  /** An error: a sentence and what to do on stderr; with -o json an object. */
  error(error: DroverError): void {
    if (this.json) {
      this.stderr.write(
        `${json({ error: { code: error.code, message: error.message, ...(error.hint !== undefined && { hint: error.hint }) } })}\n`,
      );
      return;
    }
    this.stderr.write(`drover: ${oneLine(error.message)}\n`);
    if (error.hint !== undefined && error.hint !== '') this.stderr.write(`  hint: ${oneLine(error.hint)}\n`);
  }
}

/** Control characters of a message that came from outside must not reach a terminal. */
export function oneLine(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ').trim();
}

/** Tables have several lines; nothing else in them moves the cursor. */
function withoutControls(text: string): string {
  return text.replace(/[^\P{Cc}\n\t]+/gu, ' ');
}

/** JSON that a terminal shows as it is: JSON.stringify leaves DEL and the C1 controls (U+0080 to U+009F), which some terminals obey. */
function json(value: unknown, indent?: number): string {
  return JSON.stringify(value, undefined, indent).replace(/[\u007f-\u009f]/g, (c) => `\\u00${c.charCodeAt(0).toString(16)}`);
}

/** Enumerations that people see as words: `SANDBOX_STATE_RUNNING` is `running`. */
const enumPrefix = /^(?:SANDBOX_STATE|DESIRED_STATE|HOST_STATE|SECRET_TARGET|VERDICT)_/;
const enumFields = new Set(['state', 'desiredState', 'target', 'verdict']);

/**
 * A message as `-o json` shows it: protobuf JSON (camelCase, every field present, RFC 3339 times), with states as the words that people
 * use and 64-bit integers as numbers. Ids of events and sizes in bytes are below 2^53, so that no digit is lost.
 */
export function messageJson<D extends DescMessage>(schema: D, message: MessageShape<D>): JsonValue {
  return withWords(withNumbers(schema, toJson(schema, message, { alwaysEmitImplicit: true })));
}

const wideIntegers: ReadonlySet<ScalarType> = new Set([
  ScalarType.INT64,
  ScalarType.UINT64,
  ScalarType.SINT64,
  ScalarType.FIXED64,
  ScalarType.SFIXED64,
]);

/** Protobuf JSON writes 64-bit integers as strings. */
function withNumbers(schema: DescMessage, value: JsonValue): JsonValue {
  // Times, durations and the like have a form of their own.
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return value;
  const fields = new Map(schema.fields.map((field) => [field.jsonName, field]));
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, fieldWithNumbers(fields.get(key), inner)]));
}

function fieldWithNumbers(field: DescField | undefined, value: JsonValue): JsonValue {
  if (field === undefined) return value;
  const one = (inner: JsonValue): JsonValue => {
    if (field.message !== undefined) return withNumbers(field.message, inner);
    return field.scalar !== undefined && wideIntegers.has(field.scalar) && typeof inner === 'string' ? Number(inner) : inner;
  };
  if (field.fieldKind === 'list' && Array.isArray(value)) return value.map(one);
  if (field.fieldKind === 'map' && value !== null && typeof value === 'object' && !Array.isArray(value)) {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, one(inner)]));
  }
  return one(value);
}

function withWords(value: JsonValue): JsonValue {
  if (Array.isArray(value)) return value.map(withWords);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [key, enumFields.has(key) && typeof inner === 'string' ? wordOf(inner) : withWords(inner)]),
  );
}

function wordOf(name: string): string {
  return enumPrefix.test(name) ? name.replace(enumPrefix, '').toLowerCase() : name;
}
