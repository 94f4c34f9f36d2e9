const minute = 60_000;
const day = 24 * 60 * minute;

/** Lifetime of the CA's certificate. Milliseconds. A new CA replaces it. */
export const caLifetimeMs = 3650 * day;
/** Lifetime of a host's certificate, which is renewed on the open link after two thirds of it (L-2). Milliseconds. */
export const hostLifetimeMs = 7 * day;
/** Lifetime of a sandbox's certificate (I-6), which is new at every start. Milliseconds. */
export const sandboxLifetimeMs = day;
/** Lifetime of the control plane's certificate, which is renewed in place after two thirds of it. Milliseconds. */
export const controlPlaneLifetimeMs = 30 * day;
/** How far in the past a certificate's validity begins. Clocks may differ by as much (I-17). Milliseconds. */
export const clockSkewMs = 5 * minute;
/** Bytes of a certificate request or a public key; a larger one is refused without parsing. */
export const maxRequestBytes = 8 * 1024;
