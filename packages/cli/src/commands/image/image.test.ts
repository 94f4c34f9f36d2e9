import { expect, test } from 'vitest';
import { progressStep, progressText } from './image.ts';

const at = (done: number, layersDone: number, message = 'pulling x') => ({
  message,
  done: BigInt(done),
  total: 2_000_000n,
  layersDone,
  layersTotal: 3,
});

test('the progress of a pull has layers and bytes', () => {
  expect(progressText(at(1_000_000, 1))).toMatch(/^pulling x: 1 of 3 layers, \S+ \S+ of \S+ \S+$/);
  expect(progressText({ ...at(0, 0), layersTotal: 0, total: 0n })).toBe('pulling x');
});

test('in a pipe, a further line is worth a layer, a tenth of the bytes or another step', () => {
  const steps = [at(0, 0), at(150_000, 0), at(250_000, 0), at(260_000, 1), at(2_000_000, 3), at(2_000_000, 3, 'x is ready')].map(
    progressStep,
  );
  expect(new Set(steps).size).toBe(5);
  expect(steps[0]).toBe(steps[1]);
});
