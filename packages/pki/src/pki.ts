import type { HostId, SandboxId } from '@drover/foundation';

/** The trust domain and the names in it: `spiffe://<trust domain>/…` (SPIFFE-ID). */
export interface Names {
  readonly trustDomain: string;
  /** `spiffe://td/control-plane` */
  controlPlane(): string;
  /** `spiffe://td/host/<id>` (L-2) */
  host(id: HostId): string;
  /** `spiffe://td/sandbox/<id>` (I-5) */
  sandbox(id: SandboxId): string;
  /** The subject that a URI SAN names; undefined for anything else or another trust domain. */
  parse(uri: string): SpiffeSubject | undefined;
}

export type SpiffeSubject =
  | { readonly kind: 'control-plane' }
  | { readonly kind: 'host'; readonly id: HostId }
  | { readonly kind: 'sandbox'; readonly id: SandboxId };

export interface IssuedCertificate {
  /** Leaf first. PEM. */
  readonly certificatePem: string;
  /** Milliseconds since the epoch. */
  readonly notAfter: number;
  /** SHA-256 of the DER, lower-case hex (I-7). */
  readonly thumbprint: string;
}

/** The control plane's certificate authority. Keys are ECDSA P-256. */
export interface CertificateAuthority {
  readonly names: Names;
  readonly caPem: string;
  /** SHA-256 of the CA certificate's DER, lower-case hex. Join tokens carry it (L-1). */
  readonly fingerprint: string;
  /** For the API and link listeners: server and client authentication, with a new key. */
  issueControlPlane(options: {
    readonly dnsNames: readonly string[];
    readonly ipAddresses: readonly string[];
  }): Promise<IssuedCertificate & { readonly keyPem: string }>;
  /** Uses only the public key of the request: names come from the CA. @throws {DroverError} invalid-argument */
  signHost(id: HostId, csrDer: Uint8Array): Promise<IssuedCertificate>;
  /** Server and client authentication; CN `commonName`. @throws {DroverError} invalid-argument */
  signSandbox(id: SandboxId, commonName: string, csrDer: Uint8Array): Promise<IssuedCertificate>;
  /**
   * As `signSandbox`, for the key that the sandbox already has (I-6). The caller has verified that the peer holds the private key, as a TLS
   * handshake does. @param spkiDer the public key, SubjectPublicKeyInfo. @throws {DroverError} invalid-argument
   */
  renewSandbox(id: SandboxId, commonName: string, spkiDer: Uint8Array): Promise<IssuedCertificate>;
}

/** A new private key, which never leaves this machine (L-2), and the request to sign its public key. */
export interface KeyAndRequest {
  /** PKCS #8, PEM. */
  readonly keyPem: string;
  /** PKCS #10, DER. */
  readonly csrDer: Uint8Array;
}

/** A join token as printed (L-1): `drv1.<CA fingerprint, hex>.<secret, base64url>`. */
export interface JoinTokenParts {
  readonly caFingerprint: string;
  readonly secret: string;
}
