import { create, fromBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { newSandboxId } from '@drover/foundation';
import { init, sandbox } from '@drover/protocol';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SecretBox } from '../../secrets/index.ts';
import type { SandboxRow } from '../../model/sandbox.ts';
import type { Store } from '../../store/store.ts';
import { planOf, planSource, stepNames, type CommandStep } from './plan.ts';

function setup(value: MessageInitShape<typeof sandbox.SetupSchema>): sandbox.Setup {
  return create(sandbox.SetupSchema, value);
}

const bytes = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);
const commands = (...plan: Parameters<typeof planOf>): CommandStep[] => planOf(...plan).filter((step) => step.name !== 'agent-ready');

describe('I-29: the init plan', () => {
  it('of a sandbox without setup starts its command', () => {
    expect(planOf(undefined, new Map())).toEqual([{ name: 'agent-ready' }]);
    expect(planOf(setup({ git: {}, ssh: {} }), new Map())).toEqual([{ name: 'agent-ready' }]);
  });

  it('has its steps in order, each with its timeout', () => {
    const plan = planOf(
      setup({
        postInit: 'make',
        ssh: { config: 'Host *' },
        git: { config: { a: 'b' }, clones: [{ url: 'u', path: 'p' }] },
        files: [{ path: 'a', source: { case: 'content', value: 'b' } }],
      }),
      new Map(),
    );
    expect(plan.map((step) => [step.name, ...('argv' in step ? [step.argv.join(' '), step.timeoutMs] : [])])).toEqual([
      ['config', 'drover-step config', 30_000],
      ['git', 'drover-step git', 30_000],
      ['ssh', 'drover-step ssh', 30_000],
      ['clone', 'drover-step clone', 30_000],
      ['post-init', 'drover-step post-init', 600_000],
      ['agent-ready'],
    ]);
  });

  it('omits steps without work, and always ends with agent-ready', () => {
    fc.assert(
      fc.property(fc.boolean(), fc.boolean(), fc.boolean(), fc.boolean(), fc.boolean(), (files, git, ssh, clone, postInit) => {
        const names = stepNames(
          setup({
            files: files ? [{ path: 'a' }] : [],
            git: { config: git ? { 'user.name': 'N' } : {}, clones: clone ? [{ url: 'u', path: 'p' }] : [] },
            ssh: ssh ? { knownHosts: ['h k'] } : {},
            postInit: postInit ? 'x' : '',
          }),
        );
        const wanted = [files && 'config', git && 'git', ssh && 'ssh', clone && 'clone', postInit && 'post-init', 'agent-ready'];
        expect(names).toEqual(wanted.filter((name) => name !== false));
      }),
    );
  });

  it('passes each step its input', () => {
    const secrets = new Map([['TOKEN', bytes('s3cret')]]);
    const [config, git, ssh, clone, postInit] = commands(
      setup({
        files: [
          { path: '/etc/a', source: { case: 'content', value: 'text' } },
          { path: '.netrc', source: { case: 'secret', value: 'TOKEN' } },
          { path: 'b', source: { case: 'secret', value: 'TOKEN' }, mode: 0o640 },
        ],
        git: { config: { 'user.name': 'N' }, clones: [{ url: 'https://x/y', path: 'y', ref: 'main' }] },
        ssh: { knownHosts: ['h k'], keys: ['TOKEN'], config: 'Host *' },
        postInit: '#!/bin/sh\ntrue',
      }),
      secrets,
    );
    const files = fromBinary(init.ConfigStepSchema, config?.stdin ?? new Uint8Array()).files;
    expect(files.map(({ path, content, mode }) => [path, Buffer.from(content).toString(), mode])).toEqual([
      ['/etc/a', 'text', 0o644],
      ['.netrc', 's3cret', 0o600],
      ['b', 's3cret', 0o640],
    ]);
    expect(fromBinary(init.GitStepSchema, git?.stdin ?? new Uint8Array())).toMatchObject({ config: { 'user.name': 'N' } });
    expect(fromBinary(init.CloneStepSchema, clone?.stdin ?? new Uint8Array())).toMatchObject({
      clones: [{ url: 'https://x/y', path: 'y', ref: 'main' }],
    });
    const { knownHosts, keys, config: sshConfig } = fromBinary(init.SshStepSchema, ssh?.stdin ?? new Uint8Array());
    expect([knownHosts, sshConfig]).toEqual([['h k'], 'Host *']);
    expect(keys.map(({ path, content, mode }) => [path, Buffer.from(content).toString(), mode])).toEqual([['.ssh/TOKEN', 's3cret', 0o600]]);
    expect(fromBinary(init.PostInitStepSchema, postInit?.stdin ?? new Uint8Array()).script).toBe('#!/bin/sh\ntrue');
  });

  it('is refused if it names a missing secret', () => {
    const wanting = setup({ ssh: { keys: ['KEY'] } });
    expect(() => planOf(wanting, new Map())).toThrow(expect.objectContaining({ code: 'failed-precondition' }));
  });

  it('R-19: unseals only the secrets that it names', async () => {
    const box = new SecretBox(new Uint8Array(32).fill(7));
    const id = newSandboxId();
    const unsealed: string[] = [];
    const source = planSource(
      {
        sandboxes: {
          secrets: () =>
            Promise.resolve([
              { name: 'KEY', sealed: box.seal(id, 'KEY', bytes('k')) },
              { name: 'OTHER', sealed: box.seal(id, 'OTHER', bytes('o')) },
            ]),
        } as unknown as Store['sandboxes'],
      },
      {
        unseal: (...sealed) => {
          unsealed.push(sealed[1]);
          return box.unseal(...sealed);
        },
      },
    );
    const spec = create(sandbox.SandboxSpecSchema, { setup: { ssh: { keys: ['KEY'] } } });
    const [ssh] = (await source({ id, spec } as SandboxRow)) as CommandStep[];
    expect(Buffer.from(fromBinary(init.SshStepSchema, ssh?.stdin ?? new Uint8Array()).keys[0]?.content ?? []).toString()).toBe('k');
    expect(unsealed).toEqual(['KEY']);
  });
});
