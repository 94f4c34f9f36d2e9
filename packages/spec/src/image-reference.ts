import { resolve } from 'node:path';
import { DroverError } from '@drover/foundation';
import { quote } from './invalid.ts';
import { maxImageReferenceLength } from './limits.ts';
import { isPort } from './ports.ts';

/** Where an image comes from (R-4). */
export type ImageReference = RegistryReference | ArchiveReference | DirectoryReference | HostReference;

/** An image in a registry (distribution-spec); the defaults are the Docker command's: docker.io, library/, latest. */
export interface RegistryReference {
  readonly kind: 'registry';
  /** The host, with `:port` where one is given. */
  readonly registry: string;
  readonly repository: string;
  /** Undefined only when there is a digest. */
  readonly tag: string | undefined;
  readonly digest: string | undefined;
}

/** An archive or an image layout in a directory, on the host. */
export interface ArchiveReference {
  readonly kind: 'oci-archive' | 'docker-archive' | 'oci';
  /** Absolute. */
  readonly path: string;
  /** Chooses one of several images: a tag (oci, oci-archive), or a reference as docker save writes it. */
  readonly name: string | undefined;
}

/** A root filesystem in a directory of the host. */
export interface DirectoryReference {
  readonly kind: 'dir';
  /** Absolute. */
  readonly path: string;
}

/** The host's own system. */
export interface HostReference {
  readonly kind: 'host';
}

const defaultRegistry = 'docker.io';

// distribution-spec, "Pulling manifests", and the reference grammar of distribution/reference.
const repositoryPattern = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
const registryPattern =
  /^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$/;

// image-spec descriptor.md: the algorithms that it registers and Drover computes.
const digestPattern = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

/** Whether the text is a digest that Drover can verify. */
export function isDigest(text: string): boolean {
  return digestPattern.test(text);
}

/** Whether the text is a registry as an image reference has it: HOST or HOST:PORT, IPv6 in brackets. */
export function isRegistry(text: string): boolean {
  const port = /:(\d+)$/.exec(text)?.[1];
  return registryPattern.test(text) && (port === undefined || isPort(Number(port)));
}

/**
 * `registry/name:tag@digest`, `oci-archive:PATH[:NAME]`, `docker-archive:PATH[:NAME]`, `oci:PATH[:NAME]`, `dir:PATH` or `host`.
 * @param directory where a relative path starts; without it, paths must be absolute
 * @throws {DroverError} invalid-image-reference
 */
export function parseImageReference(text: string, directory?: string): ImageReference {
  if (text.length > maxImageReferenceLength) throw refused(text, `use at most ${maxImageReferenceLength} characters`);
  if (text === 'host') return { kind: 'host' };
  const [, scheme, rest = ''] = /^(oci-archive|docker-archive|oci|dir):(.*)$/s.exec(text) ?? [];
  if (scheme === undefined) return parseRegistryReference(text);
  // `oci:1.2` without a slash could be a repository named oci; the schemes win, as in other tools.
  const kind = scheme as (ArchiveReference | DirectoryReference)['kind'];
  if (kind === 'dir') return { kind, path: parsePath(rest, directory, text) };
  // Behind the first colon is the name, so a path cannot contain one.
  const colon = rest.indexOf(':');
  const path = parsePath(colon < 0 ? rest : rest.slice(0, colon), directory, text);
  if (path.includes(':')) throw refused(text, `move it: ${path} has a colon in it`);
  return { kind, path, name: colon < 0 ? undefined : parseNameInArchive(kind, rest.slice(colon + 1), text) };
}

function parsePath(path: string, directory: string | undefined, text: string): string {
  if (path === '' || path.includes('\0') || (directory === undefined && !path.startsWith('/'))) {
    throw refused(text, 'write the absolute path, as it is on the host');
  }
  return resolve(directory ?? '/', path);
}

function parseNameInArchive(kind: ArchiveReference['kind'], name: string, text: string): string {
  try {
    if (kind === 'docker-archive') parseRegistryReference(name);
    if (kind === 'docker-archive' || /^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,255}$/.test(name)) return name;
  } catch {
    // The hint below is about the whole reference.
  }
  throw refused(text, `write ${kind}:PATH, or ${kind}:PATH:NAME for one of several images in it`);
}

/** @throws {DroverError} invalid-image-reference */
export function parseRegistryReference(text: string): RegistryReference {
  if (text.includes('://')) throw refused(text, 'leave out the scheme: registry/name:tag');
  const at = text.indexOf('@');
  const digest = at === -1 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest)) throw refused(text, 'a digest is @sha256: and 64 lower-case hexadecimal digits');
  const named = at === -1 ? text : text.slice(0, at);

  const slash = named.indexOf('/');
  const first = slash === -1 ? '' : named.slice(0, slash);
  // As the Docker command decides: a first part with a dot or a colon, or `localhost`, is a registry.
  const hasRegistry = /[.:[]/.test(first) || first === 'localhost' || /[A-Z]/.test(first);
  const rest = hasRegistry ? named.slice(slash + 1) : named;
  let registry = hasRegistry ? first.toLowerCase() : defaultRegistry;
  if (registry === 'index.docker.io' || registry === 'registry-1.docker.io') registry = defaultRegistry;
  if (!isRegistry(registry)) throw refused(text, 'the part before the first slash must be a host name');

  const colon = rest.lastIndexOf(':');
  const tag = colon === -1 ? undefined : rest.slice(colon + 1);
  let repository = colon === -1 ? rest : rest.slice(0, colon);
  if (tag !== undefined && !tagPattern.test(tag)) throw refused(text, 'a tag has letters, digits, and _ . - and at most 128 characters');
  if (registry === defaultRegistry && !repository.includes('/')) repository = `library/${repository}`;
  if (!repositoryPattern.test(repository) || repository.length > 255) {
    const lower = repository.toLowerCase();
    throw refused(
      text,
      lower !== repository && repositoryPattern.test(lower)
        ? `image names are in lower case: ${lower}`
        : 'write registry/name:tag, such as debian:12, or host for the host’s own system',
    );
  }
  return { kind: 'registry', registry, repository, tag: tag ?? (digest === undefined ? 'latest' : undefined), digest };
}

/** The canonical text: `parseImageReference` returns an equal reference for it. */
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

/**
 * The reference as a person wrote it, checked, with a path in it made absolute: the host reads the text, and stands elsewhere.
 * @throws {DroverError} invalid-image-reference
 */
export function absoluteImageReference(text: string, directory: string): string {
  const reference = parseImageReference(text, directory);
  return reference.kind === 'registry' ? text : formatImageReference(reference);
}

function refused(text: string, hint: string): DroverError {
  return new DroverError('invalid-image-reference', `${quote(text)} is not an image reference`, { hint });
}
