/** A bare gRPC server that sends commands and waits for their results, in a process of its own. */
import { create } from '@bufbuild/protobuf';
import { link } from '@drover/protocol';
import { answerParent, memoryAfterGc } from '../children.ts';
import { BareServer, type Pems } from '../bare-grpc.ts';
import { callsPerSecond, type Load } from '../load.ts';

const server = new BareServer();
const waiting = new Map<string, () => void>();
let last = 0;
server.onFrame = ({ frame }) => {
  if (frame.case !== 'result') return;
  waiting.get(frame.value.commandId)?.();
  waiting.delete(frame.value.commandId);
};

answerParent({
  start: async (pems: Pems) => await server.listen(pems),
  connected: () => server.streams.size,
  memory: memoryAfterGc,
  run: async ({ hosts, inFlight, ms }: Load) => {
    const streams = [...server.streams];
    const operation = { case: 'list' as const, value: create(link.ListSandboxesSchema) };
    return await callsPerSecond(
      async (lane) => {
        // As long as the hub's own ids.
        const id = `cmd-${String(++last).padStart(28, '0')}`;
        const answer = new Promise<void>((resolve) => waiting.set(id, resolve));
        streams[lane % hosts]?.write(create(link.ControlFrameSchema, { frame: { case: 'command', value: { id, operation } } }));
        await answer;
      },
      inFlight,
      ms,
    );
  },
});
