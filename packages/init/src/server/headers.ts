/**
 * The subset of the platform's `Headers` that Connect's gRPC handlers and client use. It replaces the platform's class in the bundles of init
 * (bundle.ts) and of the program (scripts/bundles.ts). For the platform's class Node loads all of fetch (undici, zlib, web streams), in PID 1
 * of every sandbox and in every command. As in the Fetch standard, section 2.2.2, names are lower-cased and sorted, and the values of a name
 * are joined by commas, except for `set-cookie`. Invalid names and values throw a TypeError.
 */
export class Headers {
  readonly #lists = new Map<string, string[]>();

  constructor(init?: Iterable<readonly [string, string]> | Readonly<Record<string, string>>) {
    if (init === undefined) return;
    const entries = Symbol.iterator in init ? init : Object.entries(init);
    for (const [name, value] of entries) this.append(name, value);
  }

  append(name: string, value: string): void {
    const key = checkName(name);
    const list = this.#lists.get(key);
    if (list === undefined) this.#lists.set(key, [checkValue(key, value)]);
    else list.push(checkValue(key, value));
  }

  set(name: string, value: string): void {
    const key = checkName(name);
    this.#lists.set(key, [checkValue(key, value)]);
  }

  get(name: string): string | null {
    return this.#lists.get(checkName(name))?.join(', ') ?? null;
  }

  has(name: string): boolean {
    return this.#lists.has(checkName(name));
  }

  delete(name: string): void {
    this.#lists.delete(checkName(name));
  }

  getSetCookie(): string[] {
    return [...(this.#lists.get('set-cookie') ?? [])];
  }

  forEach(callback: (value: string, key: string, parent: Headers) => void, thisArgument?: unknown): void {
    for (const [key, value] of this) callback.call(thisArgument, value, key, this);
  }

  *entries(): IterableIterator<[string, string]> {
    const lists = [...this.#lists].sort(([a], [b]) => (a < b ? -1 : 1));
    for (const [key, list] of lists) {
      if (key === 'set-cookie') for (const value of list) yield [key, value];
      else yield [key, list.join(', ')];
    }
  }

  *keys(): IterableIterator<string> {
    for (const [key] of this) yield key;
  }

  *values(): IterableIterator<string> {
    for (const [, value] of this) yield value;
  }

  [Symbol.iterator](): IterableIterator<[string, string]> {
    return this.entries();
  }
}

/** A token of RFC 9110, section 5.6.2. */
function checkName(name: string): string {
  if (!/^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(name)) throw new TypeError(`${JSON.stringify(name)} is not the name of a header`);
  return name.toLowerCase();
}

/** Trims the value, and refuses NUL, line ends and characters beyond bytes (Fetch standard, "header value"). */
function checkValue(name: string, value: string): string {
  const trimmed = value.replace(/^[\t\n\r ]+|[\t\n\r ]+$/g, '');
  // oxlint-disable-next-line no-control-regex
  if (/[\0\n\r]|[^\0-\xff]/.test(trimmed)) throw new TypeError(`the value of header ${name} cannot be sent`);
  return trimmed;
}
