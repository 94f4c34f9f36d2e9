import { createContextValues } from '@connectrpc/connect';
import type { DescService } from '@bufbuild/protobuf';
import { newSandboxId, parseName, parseProject } from '@drover/foundation';
import { control } from '@drover/protocol';
import { describe, expect, it } from 'vitest';
import type { Identity } from '../model/identity.ts';
import { attachIdentity, callerOf, identityOf } from './caller.ts';
import { checkMethods, methodTables, needsIdentity, scopeOf } from './methods.ts';

const service: DescService = control.ControlService;
const [first] = service.methods;
const withMethod = (localName: string): DescService => ({ ...service, methods: [...service.methods, { ...first, localName } as never] });

describe('I-19: the access rules of the methods', () => {
  it('cover each method of the service; only Register accepts callers without an identity', () => {
    const decisions = service.methods.map((method) => [method.name, scopeOf(method), needsIdentity(method)]);
    expect(decisions).toEqual([
      ['Register', 'register', false],
      ['WhoAmI', 'control', true],
    ]);
    expect(() => checkMethods(service)).not.toThrow();
  });

  it('a method without a rule fails the start, and no caller may call it', () => {
    expect(() => checkMethods(withMethod('newcomer'))).toThrow('no token is decided for newcomer');
    expect(scopeOf({ ...first, localName: 'newcomer' } as never)).toBeUndefined();
    expect(scopeOf({ ...first, localName: 'toString' } as never)).toBeUndefined();
    expect(needsIdentity({ ...first, localName: 'newcomer' } as never)).toBe(true);
  });

  it('an entry for an unknown method fails the start', () => {
    const { scopes, withoutIdentity } = methodTables;
    expect(() => checkMethods(service, { scopes: { ...scopes, gone: 'control' }, withoutIdentity })).toThrow('has no method gone');
    expect(() => checkMethods(service, { scopes, withoutIdentity: [...withoutIdentity, 'gone'] })).toThrow('has no method gone');
  });
});

describe('I-20: the identity in the context of a call', () => {
  const identity: Identity = {
    thumbprint: 'ab'.repeat(32),
    nextThumbprint: undefined,
    sandboxId: newSandboxId(),
    project: parseProject('red'),
    name: parseName('box'),
    commonName: 'red.box',
    registeredAt: 1,
    lastSeenAt: 1,
  };

  it('is the attached one', () => {
    const values = createContextValues();
    attachIdentity(values, identity);
    expect(identityOf(values)).toBe(identity);
  });

  it('is undefined when none was attached', () => {
    expect(identityOf(createContextValues())).toBeUndefined();
  });

  it('cannot be absent or incomplete', () => {
    const values = createContextValues();
    expect(() => attachIdentity(values, undefined)).toThrow('an absent identity');
    expect(() => attachIdentity(values, { ...identity, thumbprint: '' })).toThrow('an absent identity');
    expect(() => attachIdentity(values, { ...identity, sandboxId: '' as never })).toThrow('an absent identity');
    expect(identityOf(values)).toBeUndefined();
  });

  it('a call without its connection is an error', () => {
    expect(() => callerOf(createContextValues())).toThrow('without its connection');
  });
});
