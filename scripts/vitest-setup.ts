import { vi } from 'vitest';

/** Default time limit of `vi.waitFor` and `vi.waitUntil`. Vitest's own second is too short on a busy machine. Milliseconds. */
const conditionMs = 20_000;

const { waitFor, waitUntil } = vi;
vi.waitFor = async (condition, options = {}) =>
  await waitFor(condition, typeof options === 'number' ? options : { timeout: conditionMs, ...options });
vi.waitUntil = async (condition, options = {}) =>
  await waitUntil(condition, typeof options === 'number' ? options : { timeout: conditionMs, ...options });
