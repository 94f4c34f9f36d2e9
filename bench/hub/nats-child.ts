/** NATS request/reply over its text protocol, so that no client library is in between: a requester, or a responder. */
import { connect, type Socket } from 'node:net';
import { answerParent } from '../children.ts';
import { callsPerSecond, type Load } from '../load.ts';

/** As many bytes as a `list` command and its result have. */
const payload = Buffer.alloc(48, 'x');

type OnMessage = (subject: string, replyTo: string | undefined) => void;

/** https://docs.nats.io/reference/reference-protocols/nats-protocol: MSG subject sid [reply-to] #bytes, and the payload. */
function open(port: number, onMessage: OnMessage): Socket {
  const socket = connect({ host: '127.0.0.1', port, noDelay: true });
  let rest: Buffer = Buffer.alloc(0);
  socket.on('data', (chunk: Buffer) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    for (;;) {
      const end = rest.indexOf('\r\n');
      if (end < 0) return;
      const line = rest.toString('latin1', 0, end);
      let next = end + 2;
      if (line.startsWith('MSG ')) {
        const words = line.split(' ');
        next += Number(words.at(-1)) + 2;
        if (rest.length < next) return;
        onMessage(words[1] ?? '', words.length === 5 ? words[3] : undefined);
      } else if (line === 'PING') socket.write('PONG\r\n');
      else if (line.startsWith('-ERR')) throw new Error(line);
      rest = rest.subarray(next);
    }
  });
  socket.write('CONNECT {"verbose":false,"pedantic":false}\r\n');
  return socket;
}

function publish(socket: Socket, subject: string, replyTo: string): void {
  socket.write(`PUB ${subject}${replyTo === '' ? '' : ` ${replyTo}`} ${payload.length}\r\n${payload.toString('latin1')}\r\n`);
}

let requester: Socket | undefined;
const waiting = new Map<string, () => void>();
let last = 0;

answerParent({
  respond: ({ port, hosts }: { port: number; hosts: number }) => {
    // One connection a host, as there.
    for (let host = 0; host < hosts; host++) {
      const socket: Socket = open(port, (_subject, replyTo) => {
        if (replyTo !== undefined) publish(socket, replyTo, '');
      });
      socket.write(`SUB host.${host} 1\r\n`);
    }
  },
  request: (port: number) => {
    requester = open(port, (subject) => {
      waiting.get(subject)?.();
      waiting.delete(subject);
    });
    requester.write('SUB inbox.* 1\r\n');
  },
  run: async ({ hosts, inFlight, ms }: Load) => {
    const socket = requester;
    if (socket === undefined) throw new Error('not connected');
    return await callsPerSecond(
      async (lane) => {
        const inbox = `inbox.${++last}`;
        const answer = new Promise<void>((resolve) => waiting.set(inbox, resolve));
        publish(socket, `host.${lane % hosts}`, inbox);
        await answer;
      },
      inFlight,
      ms,
    );
  },
});
