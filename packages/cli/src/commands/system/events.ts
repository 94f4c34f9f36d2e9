import { timestampDate } from '@bufbuild/protobuf/wkt';
import { api } from '@drover/protocol';
import { clip, DroverError } from '@drover/foundation';
import type { Cli } from '../../cli.ts';
import { noteReconnects } from '../sandbox/reconnect.ts';
import { messageJson } from '../../output/index.ts';
import { eventText } from './event-text.ts';

export interface EventsFlags {
  readonly follow?: boolean;
  readonly since?: string;
  readonly kind?: readonly string[];
  readonly subject?: string;
  readonly tail?: string;
}

/**
 * R-3, I-34, I-35: prints events, oldest first. Without -f it ends after the stored events. --since 0 starts at the oldest stored event,
 * --tail at one of the last.
 */
export default async function events(cli: Cli, _: readonly [], flags: EventsFlags): Promise<void> {
  if (flags.since !== undefined && !/^\d{1,18}$/.test(flags.since)) {
    throw new DroverError('invalid-argument', `--since ${JSON.stringify(clip(flags.since))} is not the id of an event`, {
      hint: 'use the id of the last event that you have seen; 0 starts with the oldest',
    });
  }
  if (flags.tail !== undefined && flags.since !== undefined) {
    throw new DroverError('invalid-argument', '--since and --tail exclude each other', { hint: 'use one of them' });
  }
  if (flags.tail !== undefined && !/^\d{1,9}$/.test(flags.tail)) {
    throw new DroverError('invalid-argument', `--tail ${JSON.stringify(clip(flags.tail))} is not a number of events`, {
      hint: 'use the number of events to start with, such as --tail 20',
    });
  }
  const kinds = flags.kind?.flatMap((flag) => flag.split(','));
  const client = await cli.connect();
  const follow = flags.follow === true;
  const since = flags.since === undefined ? undefined : BigInt(flags.since);
  const watch = client.events.watch({
    follow,
    ...(flags.tail !== undefined
      ? { tail: Number(flags.tail) }
      : since !== undefined && since > 0n
        ? { afterId: since }
        : { fromStart: since === 0n || !follow }),
    ...(kinds !== undefined && { kinds }),
    ...(flags.subject !== undefined && { subject: flags.subject }),
    onReconnect: noteReconnects(cli),
    signal: cli.signal,
  });
  for await (const event of watch) {
    if (event.lost > 0n) cli.out.note(`${event.lost} events were dropped: this reader is too slow`);
    if (cli.out.json) {
      const { dataJson, ...rest } = messageJson(api.EventSchema, event) as { dataJson: string };
      cli.out.record({ ...rest, data: dataJson === '' ? {} : (JSON.parse(dataJson) as unknown) });
    } else {
      const time = event.time === undefined ? '-' : timestampDate(event.time).toISOString();
      cli.out.line(`${event.id}  ${time}  ${event.subject || '-'}  ${event.type}  ${eventText(event)}`.trimEnd());
    }
  }
}
