import { vi } from 'vitest';

/** How long a test waits for a condition that it names no time for: Vitest's own second is too short on a machine that is busy. Milliseconds. */
const conditionMs = 20_000;

const { waitFor, waitUntil } = vi;
vi.waitFor = async (condition, options = {}) =>
  await waitFor(condition, typeof options === 'number' ? options : { timeout: conditionMs, ...options });
vi.waitUntil = async (condition, options = {}) =>
  await waitUntil(condition, typeof options === 'number' ? options : { timeout: conditionMs, ...options });
