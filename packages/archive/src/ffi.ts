/** node:ffi; undefined in a Node without it, or one started with --no-experimental-ffi. */
export function openFfi(): typeof import('node:ffi') | undefined {
  try {
    return withoutFfiWarning(() => process.getBuiltinModule('node:ffi') as typeof import('node:ffi') | undefined);
  } catch {
    return undefined;
  }
}

/** node:ffi warns once that it is experimental; that is known here, and the warning would stand in every command's stderr. */
function withoutFfiWarning<T>(load: () => T): T {
  const original = Object.getOwnPropertyDescriptor(process, 'emitWarning');
  if (original === undefined) return load();
  Object.defineProperty(process, 'emitWarning', { ...original, value: () => undefined });
  try {
    return load();
  } finally {
    Object.defineProperty(process, 'emitWarning', original);
  }
}
