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

describe('I-19: who may call what', () => {
  it('is decided for each method of the service; only Register is for callers without an identity', () => {
    const decisions = service.methods.map((method) => [method.name, scopeOf(method), needsIdentity(method)]);
    expect(decisions).toEqual([
      ['Register', 'register', false],
      ['WhoAmI', 'control', true],
    ]);
    expect(() => checkMethods(service)).not.toThrow();
  });

  it('a new method without a decision stops the start; until then nobody may call it', () => {
    expect(() => checkMethods(withMethod('newcomer'))).toThrow('no token is decided for newcomer');
    expect(scopeOf({ ...first, localName: 'newcomer' } as never)).toBeUndefined();
    expect(scopeOf({ ...first, localName: 'toString' } as never)).toBeUndefined();
    expect(needsIdentity({ ...first, localName: 'newcomer' } as never)).toBe(true);
  });

  it('an entry that names no method stops the start', () => {
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

  it('is the one that was attached', () => {
    const values = createContextValues();
    attachIdentity(values, identity);
    expect(identityOf(values)).toBe(identity);
  });

  it('is none when none was attached', () => {
    expect(identityOf(createContextValues())).toBeUndefined();
  });

  it('cannot be an absent or a half-filled one', () => {
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
