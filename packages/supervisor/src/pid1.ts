/** Calls a handler for each signal until it is disposed of. A handler only records what was asked for (G-8). */
export function onSignals(handlers: Readonly<Partial<Record<NodeJS.Signals, () => void>>>): Disposable {
  const entries = Object.entries(handlers) as [NodeJS.Signals, () => void][];
  for (const [signal, handler] of entries) process.on(signal, handler);
  return {
    [Symbol.dispose]: () => {
      for (const [signal, handler] of entries) process.off(signal, handler);
    },
  };
}
