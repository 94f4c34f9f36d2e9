/** google.protobuf.Timestamp from milliseconds since the epoch. */
export function timestamp(ms: number): { readonly seconds: bigint; readonly nanos: number } {
  const seconds = Math.floor(ms / 1000);
  return { seconds: BigInt(seconds), nanos: Math.round(ms - seconds * 1000) * 1_000_000 };
}
