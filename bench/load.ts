/** Keeps `inFlight` calls of `call` under way for `ms`; gives how many a second came to their end. */
export async function callsPerSecond(call: (lane: number) => Promise<unknown>, inFlight: number, ms: number): Promise<number> {
  let done = 0;
  const began = performance.now();
  const end = began + ms;
  const lane = async (index: number): Promise<void> => {
    while (performance.now() < end) {
      await call(index);
      done++;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, async (_, index) => await lane(index)));
  return (done * 1000) / (performance.now() - began);
}

export interface Load {
  readonly hosts: number;
  readonly inFlight: number;
  readonly ms: number;
}
