import { expect, test } from 'vitest';
import { loopbackAddress } from './host.ts';

test.each([
  ['drover agent join https://127.0.0.1:7443 --token x', '127.0.0.1'],
  ['drover agent join https://localhost:7443', 'localhost'],
  ['drover agent join https://[::1]:7443', '[::1]'],
  ['drover agent join https://control.example:7443', undefined],
  ['', undefined],
])('the address of %j that is one of this machine only: %j', (command, address) => {
  expect(loopbackAddress(command)).toBe(address);
});
