const minute = 60_000;
const day = 24 * 60 * minute;

/** The CA's own certificate. Milliseconds; replaced by making a new CA. */
export const caLifetimeMs = 3650 * day;
/** A host's certificate; renewed on the open link at two thirds of it (L-2). */
export const hostLifetimeMs = 7 * day;
/** A sandbox's certificate (I-6: short-lived, new on every start). */
export const sandboxLifetimeMs = day;
/** The control plane's own; renewed in place at two thirds of it. */
export const controlPlaneLifetimeMs = 30 * day;
/** Certificates begin this much in the past, so that clocks that differ by it break nothing (I-17). */
export const clockSkewMs = 5 * minute;
/** A certificate request larger than this is refused unread. Bytes. */
export const maxRequestBytes = 8 * 1024;
