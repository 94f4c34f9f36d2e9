import { isAbsolute, normalize } from 'node:path';
import { clip, DroverError } from '@drover/foundation';
import { isDigest } from './digest.ts';

/** Where an image comes from (R-4). */
export type ImageReference = RegistryReference | ArchiveReference | DirectoryReference | HostReference;

/** distribution-spec; the defaults are the Docker command's: docker.io, library/, latest. */
export interface RegistryReference {
  readonly kind: 'registry';
  /** Host, with the port if one was given. */
  readonly registry: string;
  readonly repository: string;
  /** Undefined only when there is a digest. */
  readonly tag: string | undefined;
  readonly digest: string | undefined;
}

/** An archive or a layout directory on the host; paths are absolute. */
export interface ArchiveReference {
  readonly kind: 'oci-archive' | 'docker-archive' | 'oci';
  readonly path: string;
  /** Which of several images in it: a tag (oci, oci-archive), or a reference as docker save knows it. */
  readonly name: string | undefined;
}

export interface DirectoryReference {
  readonly kind: 'dir';
  readonly path: string;
}

export interface HostReference {
  readonly kind: 'host';
}

const defaultRegistry = 'docker.io';

// distribution-spec, "Pulling manifests", and the reference grammar of distribution/reference.
const repositoryPattern = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
const registryPattern =
  /^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?$/;

/**
 * Parses what a person writes for an image.
 * @throws {DroverError} invalid-image-reference
 */
export function parseImageReference(text: string): ImageReference {
  if (text === 'host') return { kind: 'host' };
  const scheme = /^(oci-archive|docker-archive|oci|dir):(.*)$/s.exec(text);
  // `oci:1.2` without a slash could be a repository named oci; the schemes win, as in other tools.
  if (scheme !== null) return parseLocal(scheme[1] as ArchiveReference['kind'] | 'dir', scheme[2] as string, text);
  return parseRegistryReference(text);
}

function parseLocal(kind: ArchiveReference['kind'] | 'dir', rest: string, text: string): ImageReference {
  if (kind === 'dir') return { kind, path: absolute(rest, text) };
  // A path may not have a colon: what follows the first one is the name.
  const colon = rest.indexOf(':');
  const path = colon === -1 ? rest : rest.slice(0, colon);
  const name = colon === -1 ? undefined : rest.slice(colon + 1);
  if (name !== undefined && !(kind === 'docker-archive' ? isNameInArchive(name) : /^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,255}$/.test(name))) {
    throw invalid(text, `write ${kind}:PATH, or ${kind}:PATH:NAME for one of several images in it`);
  }
  return { kind, path: absolute(path, text), name };
}

function isNameInArchive(name: string): boolean {
  try {
    parseRegistryReference(name);
    return true;
  } catch {
    // Only asked whether it is one.
    return false;
  }
}

function absolute(path: string, text: string): string {
  if (!isAbsolute(path) || path.includes('\0')) throw invalid(text, 'write the absolute path, as it is on the host');
  const normal = normalize(path);
  return normal.length > 1 && normal.endsWith('/') ? normal.slice(0, -1) : normal;
}

/** @throws {DroverError} invalid-image-reference */
export function parseRegistryReference(text: string): RegistryReference {
  if (text.length > 512) throw invalid(text, 'a reference has at most 512 characters');
  if (text.includes('://')) throw invalid(text, 'leave out the scheme: registry/name:tag');
  const at = text.indexOf('@');
  const digest = at === -1 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest)) throw invalid(text, 'a digest is @sha256: and 64 lower-case hexadecimal digits');
  const named = at === -1 ? text : text.slice(0, at);

  const slash = named.indexOf('/');
  const first = slash === -1 ? '' : named.slice(0, slash);
  // As the Docker command decides: a first part with a dot or a colon, or `localhost`, is a registry.
  const hasRegistry = /[.:[]/.test(first) || first === 'localhost' || /[A-Z]/.test(first);
  const rest = hasRegistry ? named.slice(slash + 1) : named;
  let registry = hasRegistry ? first.toLowerCase() : defaultRegistry;
  if (registry === 'index.docker.io' || registry === 'registry-1.docker.io') registry = defaultRegistry;
  const port = /:(\d+)$/.exec(registry)?.[1];
  if (!registryPattern.test(registry) || (port !== undefined && (Number(port) < 1 || Number(port) > 65_535))) {
    throw invalid(text, 'the part before the first slash is no host name');
  }

  const colon = rest.lastIndexOf(':');
  const tag = colon === -1 ? undefined : rest.slice(colon + 1);
  let repository = colon === -1 ? rest : rest.slice(0, colon);
  if (tag !== undefined && !tagPattern.test(tag)) throw invalid(text, 'a tag has letters, digits, and _ . - and at most 128 characters');
  if (registry === defaultRegistry && !repository.includes('/')) repository = `library/${repository}`;
  if (!repositoryPattern.test(repository) || repository.length > 255) {
    const lower = repository.toLowerCase();
    throw invalid(
      text,
      lower !== repository && repositoryPattern.test(lower)
        ? `image names are in lower case: ${lower}`
        : 'write registry/name:tag, such as debian:12, or host for the host’s own system',
    );
  }
  return { kind: 'registry', registry, repository, tag: tag ?? (digest === undefined ? 'latest' : undefined), digest };
}

/** The canonical text; parsing it gives the same reference again. */
export function formatImageReference(reference: ImageReference): string {
  if (reference.kind === 'host') return 'host';
  if (reference.kind === 'dir') return `dir:${reference.path}`;
  if (reference.kind === 'registry') {
    const tag = reference.tag === undefined ? '' : `:${reference.tag}`;
    const digest = reference.digest === undefined ? '' : `@${reference.digest}`;
    return `${reference.registry}/${reference.repository}${tag}${digest}`;
  }
  return `${reference.kind}:${reference.path}${reference.name === undefined ? '' : `:${reference.name}`}`;
}

function invalid(text: string, hint: string): DroverError {
  return new DroverError('invalid-image-reference', `${JSON.stringify(clip(text))} is not an image reference`, { hint });
}
