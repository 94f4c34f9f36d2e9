import { DroverError, isHostId, isSandboxId, clip } from '@drover/foundation';
import type { Names, SpiffeSubject } from './pki.ts';

/** A trust domain is a lower-case DNS name (SPIFFE-ID, section 2.1). */
const trustDomainPattern = /^[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$/;

/** The names of one trust domain. @throws {DroverError} invalid-config */
export function namesOf(trustDomain: string): Names {
  if (!trustDomainPattern.test(trustDomain)) {
    throw new DroverError('invalid-config', `${JSON.stringify(clip(trustDomain))} cannot be a trust domain`, {
      hint: 'use a lower-case DNS name, such as drover.example.org',
    });
  }
  const root = `spiffe://${trustDomain}`;
  return {
    trustDomain,
    controlPlane: () => `${root}/control-plane`,
    host: (id) => `${root}/host/${id}`,
    sandbox: (id) => `${root}/sandbox/${id}`,
    parse(uri): SpiffeSubject | undefined {
      if (!uri.startsWith(`${root}/`)) return undefined;
      const [kind, id, ...rest] = uri.slice(root.length + 1).split('/');
      if (rest.length > 0) return undefined;
      if (kind === 'control-plane' && id === undefined) return { kind };
      if (kind === 'host' && id !== undefined && isHostId(id)) return { kind, id };
      if (kind === 'sandbox' && id !== undefined && isSandboxId(id)) return { kind, id };
      return undefined;
    },
  };
}
