/**
 * An init that attacks its clients: `node hostile-init.ts PORT CERTIFICATE KEY`. Each connection gets the next attack after its handshake,
 * and stays open. Prints a line for each attack.
 */
import { readFileSync } from 'node:fs';
import { createServer } from 'node:tls';
import { frame, frameType } from '@drover/protocol/testing';
import { attacksOf, frameKinds, headerBlocks } from './attacks.ts';

const [, , port = '', certificate = '', key = ''] = process.argv;
const floods = Object.values(frameKinds).flatMap((kind) => attacksOf(kind).filter(({ flood }) => flood === true));
// This attack once ended the control plane, if a garbage collection ran at the right moment. It comes first, several times.
const fatal = headerBlocks.filter(({ name }) => name === 'an empty block and 20 CONTINUATION frames');
const attacks = [...fatal, ...fatal, ...fatal, ...fatal, ...headerBlocks, ...floods];
let connections = 0;

const options = { cert: readFileSync(certificate), key: readFileSync(key), ALPNProtocols: ['h2'] };
createServer(options, (socket) => {
  socket.on('error', () => undefined).resume();
  const attack = attacks[connections++ % attacks.length];
  if (attack === undefined) return;
  console.log(attack.name);
  socket.write(frame(frameType.settings, 0, 0));
  socket.write(attack.bytes);
  if (attack.flood !== true) return;
  const send = (): void => {
    while (!socket.destroyed && socket.write(attack.bytes));
    if (!socket.destroyed) socket.once('drain', send);
  };
  send();
})
  .on('tlsClientError', () => undefined)
  .listen(Number(port), '0.0.0.0', () => console.log('listening'));
