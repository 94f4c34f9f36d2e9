import type { Backend } from './backend.ts';

/** The backend with some of its methods replaced. */
export function override(backend: Backend, methods: Partial<Backend>): Backend {
  return new Proxy<Backend>(backend, {
    get: (target, name) => {
      if (Object.hasOwn(methods, name)) return methods[name as keyof Backend];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}
