import type { DescMethod, DescService } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { control } from '@drover/protocol';
import type { TokenScope } from '../model/index.ts';

/** Access rules by the method's name in the generated code. */
export interface MethodTables {
  /** The token that each method requires (I-18). */
  readonly scopes: Readonly<Record<string, TokenScope>>;
  /** The methods that a caller without a row in the registry may call. All others require a row (I-19). */
  readonly withoutIdentity: readonly string[];
}

export const methodTables: MethodTables = {
  scopes: { register: 'register', whoAmI: 'control' } satisfies Record<keyof (typeof control.ControlService)['method'], TokenScope>,
  withoutIdentity: ['register'],
};

/**
 * Checks the tables against the service at start (I-19): each entry names a method, and each method has its token.
 * @throws {DroverError} internal
 */
export function checkMethods(service: DescService, { scopes, withoutIdentity }: MethodTables = methodTables): void {
  const methods = new Set(service.methods.map((method) => method.localName));
  const named = [...Object.keys(scopes), ...withoutIdentity].filter((name) => !methods.has(name));
  const undecided = [...methods].filter((name) => !Object.hasOwn(scopes, name));
  if (named.length > 0) throw new DroverError('internal', `${service.typeName} has no method ${named.join(', ')}`);
  if (undecided.length > 0) throw new DroverError('internal', `no token is decided for ${undecided.join(', ')} of ${service.typeName}`);
}

/** The token that the method requires; undefined for a method without a rule, which no caller may call. */
export function scopeOf(method: DescMethod): TokenScope | undefined {
  return Object.hasOwn(methodTables.scopes, method.localName) ? methodTables.scopes[method.localName] : undefined;
}

export function needsIdentity(method: DescMethod): boolean {
  return !methodTables.withoutIdentity.includes(method.localName);
}
