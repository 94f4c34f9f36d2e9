import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { ScalarType, toJson, type DescField, type DescMessage, type JsonValue, type MessageShape } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { lineEnd } from '../terminal/index.ts';
import { table, type Column } from './table.ts';

/** A command's output, as text or JSON: results on stdout, progress and errors on stderr. */
export class Output {
  readonly json: boolean;
  readonly stdout: Writable;
  readonly stderr: Writable;
  /** Whether stderr is a terminal, on which progress may redraw. */
  readonly interactive: boolean;

  constructor(options: { readonly json: boolean; readonly stdout: Writable; readonly stderr: Writable; readonly interactive: boolean }) {
    this.json = options.json;
    this.stdout = options.stdout;
    this.stderr = options.stderr;
    this.interactive = options.interactive;
  }

  /** Prints lines of the result. */
  line(text: string): void {
    this.stdout.write(`${withoutControls(text)}\n`);
  }

  /** Prints a note on stderr, in both formats. */
  note(text: string, hint?: string): void {
    this.stderr.write(`drover: ${text.replace(/\p{Cc}+/gu, ' ')}${lineEnd()}`);
    if (hint !== undefined) this.stderr.write(`  hint: ${oneLine(hint)}${lineEnd()}`);
  }

  /** Prints one JSON document. */
  object(value: unknown): void {
    this.stdout.write(`${json(value, 2)}\n`);
  }

  /** Prints one line of NDJSON. */
  record(value: unknown): void {
    this.stdout.write(`${json(value)}\n`);
  }

  /** Prints a list as a JSON array or a table. `none` is a note instead of an empty table. */
  list<T>(items: readonly T[], toValue: (item: T) => unknown, columns: readonly Column<T>[], none: string): void {
    if (this.json) {
      this.object(items.map(toValue));
    } else if (items.length === 0) {
      this.note(none);
    } else {
      this.line(table(items, columns));
    }
  }

  /** Prints one object as `title: value` lines, without empty values. */
  details(rows: readonly (readonly [title: string, value: string])[]): void {
    for (const [title, value] of rows) if (value !== '') this.line(`${`${title}:`.padEnd(12)} ${value}`);
  }

  /** Writes bytes with backpressure. Bytes for a closed stream are dropped. @throws the error that broke the stream */
  async bytes(data: Uint8Array, stream: 'stdout' | 'stderr' = 'stdout'): Promise<void> {
    const to = stream === 'stdout' ? this.stdout : this.stderr;
    if (to.destroyed || to.write(data) || to.destroyed) return;
    const waiting = new AbortController();
    const { signal } = waiting;
    try {
      // A closed stream never drains.
      await Promise.race([once(to, 'drain', { signal }), once(to, 'close', { signal })]);
    } finally {
      // Removes the listener of the event that did not occur.
      waiting.abort();
    }
  }

  /** Prints an error on stderr: a sentence and a hint, or with -o json an object. */
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

/** Replaces control characters, which an untrusted message must not send to a terminal. */
export function oneLine(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ').trim();
}

/** Keeps line feeds and tabs, which tables need, and replaces all other control characters. */
function withoutControls(text: string): string {
  return text.replace(/[^\P{Cc}\n\t]+/gu, ' ');
}

/** Also escapes DEL and the C1 controls (U+0080 to U+009F), which JSON.stringify leaves and some terminals obey. */
function json(value: unknown, indent?: number): string {
  return JSON.stringify(value, undefined, indent).replace(/[\u007f-\u009f]/g, (c) => `\\u00${c.charCodeAt(0).toString(16)}`);
}

/** Enumerations that are printed as words: `SANDBOX_STATE_RUNNING` as `running`. */
const enumPrefix = /^(?:SANDBOX_STATE|DESIRED_STATE|HOST_STATE|SECRET_TARGET|VERDICT)_/;
const enumFields = new Set(['state', 'desiredState', 'target', 'verdict']);

/**
 * A message in the form of `-o json`: protobuf JSON (camelCase, every field present, RFC 3339 times), with states as words and 64-bit
 * integers as numbers. Event ids and sizes in bytes are below 2^53, so no digit is lost.
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
  // Times and durations are strings.
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
