import { create, toBinary } from '@bufbuild/protobuf';
import { DroverError } from '@drover/foundation';
import { init, type sandbox } from '@drover/protocol';
import { postInitStepMs, stepMs } from '../../limits.ts';
import type { SecretBox } from '../../secrets/index.ts';
import type { SandboxRow } from '../../model/index.ts';
import type { Store } from '../../store/index.ts';

/** One step of the init plan (I-29). The last step makes init start the user's command; the others run as commands in the sandbox. */
export type PlanStep = CommandStep | { readonly name: 'agent-ready' };

export interface CommandStep {
  readonly name: 'config' | 'git' | 'ssh' | 'clone' | 'post-init';
  readonly argv: readonly string[];
  /** The whole input; stdin is closed after it. */
  readonly stdin: Uint8Array<ArrayBuffer>;
  readonly timeoutMs: number;
}

export type StepName = PlanStep['name'];

/** Values of a sandbox's secrets, by name. */
export type SecretValues = ReadonlyMap<string, Uint8Array<ArrayBuffer>>;

/** Returns the plan of a sandbox, including its secrets. */
export type PlanSource = (row: SandboxRow) => Promise<readonly PlanStep[]>;

const fileMode = 0o644;
const secretMode = 0o600;

/** The names of the plan's steps, in order. Steps without work are left out. */
export function stepNames(setup: sandbox.Setup | undefined): readonly StepName[] {
  if (setup === undefined) return ['agent-ready'];
  const { files, git, ssh, postInit } = setup;
  return [
    ...(files.length > 0 ? (['config'] as const) : []),
    ...(git !== undefined && Object.keys(git.config).length > 0 ? (['git'] as const) : []),
    ...(ssh !== undefined && (ssh.knownHosts.length > 0 || ssh.keys.length > 0 || ssh.config !== '') ? (['ssh'] as const) : []),
    // After ssh, whose keys a clone may need.
    ...(git !== undefined && git.clones.length > 0 ? (['clone'] as const) : []),
    ...(postInit === '' ? [] : (['post-init'] as const)),
    'agent-ready',
  ];
}

/**
 * The init plan of a sandbox (I-29).
 * @param secrets the values of the secrets that `setup` names
 * @throws {DroverError} failed-precondition for a missing secret
 */
export function planOf(setup: sandbox.Setup | undefined, secrets: SecretValues): readonly PlanStep[] {
  return stepNames(setup).map((name) => {
    if (name === 'agent-ready' || setup === undefined) return { name: 'agent-ready' };
    const timeoutMs = name === 'post-init' ? postInitStepMs : stepMs;
    return { name, argv: ['drover-step', name], stdin: stdinOf(name, setup, secrets), timeoutMs };
  });
}

function stdinOf(name: CommandStep['name'], setup: sandbox.Setup, secrets: SecretValues): Uint8Array<ArrayBuffer> {
  const secret = (secretName: string): Uint8Array<ArrayBuffer> => {
    const value = secrets.get(secretName);
    if (value !== undefined) return value;
    throw new DroverError('failed-precondition', `the setup names the secret ${secretName}, which the sandbox does not have`, {
      hint: 'pass it with --secret when the sandbox is created',
    });
  };
  switch (name) {
    case 'config': {
      const files = setup.files.map(({ path, source, mode }) =>
        create(init.StepFileSchema, {
          path,
          content: source.case === 'secret' ? secret(source.value) : new TextEncoder().encode(source.value ?? ''),
          mode: mode === 0 ? (source.case === 'secret' ? secretMode : fileMode) : mode,
        }),
      );
      return toBinary(init.ConfigStepSchema, create(init.ConfigStepSchema, { files }));
    }
    case 'git':
      return toBinary(init.GitStepSchema, create(init.GitStepSchema, { config: setup.git?.config ?? {} }));
    case 'clone': {
      const clones = (setup.git?.clones ?? []).map(({ url, path, ref }) => ({ url, path, ref }));
      return toBinary(init.CloneStepSchema, create(init.CloneStepSchema, { clones }));
    }
    case 'ssh': {
      const { knownHosts = [], keys = [], config = '' } = setup.ssh ?? {};
      const files = keys.map((key) => create(init.StepFileSchema, { path: `.ssh/${key}`, content: secret(key), mode: secretMode }));
      return toBinary(init.SshStepSchema, create(init.SshStepSchema, { knownHosts, keys: files, config }));
    }
    case 'post-init':
      return toBinary(init.PostInitStepSchema, create(init.PostInitStepSchema, { script: setup.postInit }));
    default:
      return name satisfies never;
  }
}

/** Plans with secrets from the store, unsealed for the session that carries them. */
export function planSource(store: Pick<Store, 'sandboxes'>, box: Pick<SecretBox, 'unseal'>): PlanSource {
  return async (row) => {
    const { setup } = row.spec;
    const named = new Set([
      ...(setup?.files ?? []).flatMap(({ source }) => (source.case === 'secret' ? [source.value] : [])),
      ...(setup?.ssh?.keys ?? []),
    ]);
    if (named.size === 0) return planOf(setup, new Map());
    const sealed = (await store.sandboxes.secrets(row.id)).filter(({ name }) => named.has(name));
    return planOf(setup, new Map(sealed.map(({ name, sealed: text }) => [name, box.unseal(row.id, name, text)])));
  };
}
