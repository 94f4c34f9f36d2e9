import { DroverError } from '@drover/foundation';
import { indexTypes, manifestTypes, type Descriptor, type Platform } from './manifest.ts';

const architectures: Record<string, string> = { x64: 'amd64', ia32: '386', ppc64: 'ppc64le' };

/** The platform of this machine, in Go's names, which the image-spec uses. */
export function hostPlatform(): Platform {
  return { os: 'linux', architecture: architectures[process.arch] ?? process.arch };
}

export const formatPlatform = (platform: Platform): string =>
  [platform.os, platform.architecture, platform.variant].filter((part) => part !== undefined && part !== '').join('/');

/** Variants that run on a machine, best first (image-spec image-index.md). */
function variants(platform: Platform): readonly string[] {
  if (platform.architecture === 'arm64') return ['v8', ''];
  if (platform.architecture === 'arm') {
    const best = Number(/^v(\d)$/.exec(platform.variant ?? 'v7')?.[1] ?? 7);
    return [...Array.from({ length: Math.max(0, best - 4) }, (_, i) => `v${best - i}`), ''];
  }
  if (platform.architecture === 'amd64') {
    const best = Number(/^v(\d)$/.exec(platform.variant ?? 'v1')?.[1] ?? 1);
    return [...Array.from({ length: best }, (_, i) => `v${best - i}`), ''];
  }
  return [platform.variant ?? '', ''];
}

/** Chooses the manifest of an index that runs on this machine. @throws {DroverError} image-not-found */
export function choosePlatform(manifests: readonly Descriptor[], platform: Platform, reference: string): Descriptor {
  const known = [...indexTypes, ...manifestTypes, ''];
  const candidates = manifests.filter((m) => known.includes(m.mediaType));
  const fitting = candidates.filter((m) => m.platform?.os === platform.os && m.platform.architecture === platform.architecture);
  for (const variant of variants(platform)) {
    const chosen = fitting.find((m) => (m.platform?.variant ?? '') === variant);
    if (chosen !== undefined) return chosen;
  }
  // A layout with one image often names no platform.
  const [only] = candidates;
  if (candidates.length === 1 && only !== undefined && only.platform === undefined) return only;
  const offered = [...new Set(candidates.map((m) => (m.platform === undefined ? 'unnamed' : formatPlatform(m.platform))))];
  throw new DroverError('image-not-found', `the image ${reference} has nothing for ${formatPlatform(platform)}`, {
    hint: offered.length === 0 ? 'it is empty' : `it has ${offered.slice(0, 12).join(', ')}`,
  });
}
