import { isUtf8 } from 'node:buffer';
import { clip, DroverError } from '@drover/foundation';
import { sandbox } from '@drover/protocol';
import { maxSecretBytes, maxSecrets, maxSecretsBytes, parseSecretName } from '@drover/spec';

const { SecretTarget } = sandbox;

function invalid(message: string, hint: string): DroverError {
  return new DroverError('invalid-argument', message, { hint });
}

/** Checks names, targets and values of a new sandbox's secrets. No message contains a value. @throws {DroverError} invalid-argument, too-large */
export function checkSecrets(spec: sandbox.SandboxSpec, values: readonly sandbox.SecretValue[]): void {
  const { secrets } = spec;
  if (secrets.length > maxSecrets) throw invalid(`there are ${secrets.length} secrets`, `use at most ${maxSecrets}`);
  const byName = new Map(values.map(({ name, value }) => [name, value]));
  if (new Set(secrets.map(({ name }) => name)).size < secrets.length)
    throw invalid('two secrets have the same name', 'use different names');
  if (byName.size < values.length || values.length !== secrets.length || secrets.some(({ name }) => !byName.has(name))) {
    throw invalid('the values of the secrets are not those that the spec names', 'send one value for each secret of the spec');
  }
  for (const { name, target } of secrets) checkSecret(name, target, byName.get(name) ?? new Uint8Array());
  const bytes = values.reduce((sum, { value }) => sum + value.byteLength, 0);
  if (bytes > maxSecretsBytes) {
    throw new DroverError('too-large', `the secrets have ${bytes} bytes together`, { hint: `use at most ${maxSecretsBytes}` });
  }
  const files = secrets.some(({ target }) => target === SecretTarget.FILE);
  const covered = files ? spec.mounts.find(({ target }) => /^\/+run(\/+secrets(\/.*)?)?\/*$/.test(target)) : undefined;
  if (covered !== undefined) {
    throw invalid(`the mount on ${JSON.stringify(clip(covered.target))} would cover /run/secrets`, 'mount it elsewhere');
  }
}

function checkSecret(name: string, target: sandbox.SecretTarget, value: Uint8Array): void {
  const shown = JSON.stringify(clip(name));
  if (value.byteLength > maxSecretBytes) {
    throw new DroverError('too-large', `the secret ${shown} has ${value.byteLength} bytes`, { hint: `use at most ${maxSecretBytes}` });
  }
  switch (target) {
    case SecretTarget.ENVIRONMENT:
      parseSecretName(name, 'environment');
      if (value.includes(0) || !isUtf8(value)) {
        throw invalid(`the secret ${shown} is not text, and cannot be an environment variable`, 'pass it as a file');
      }
      return;
    case SecretTarget.FILE:
      parseSecretName(name, 'file');
      return;
    default:
      throw invalid(`the secret ${shown} has no target`, 'choose the environment or a file');
  }
}
