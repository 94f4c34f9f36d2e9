import { lstat, stat } from 'node:fs/promises';
import { bytesOf, fsPath, readTree, resolveGiven, showPath, stringOf, unsupportedKind } from '@drover/archive';
import { DroverError, reasonOf } from '@drover/foundation';
import type { Cli } from '../cli.ts';
import type { CopyFlags } from './flags.ts';
import type { CopyReport } from './report.ts';

/**
 * Copies as cp -R does. If the target is a directory, or ends in `/`, the copy is placed in it under its own name; otherwise it becomes
 * the target. Of `DIR/.` the contents are copied. `-` unpacks a tar stream from stdin below the target. Paths are byte strings.
 */
export async function copyIn(
  cli: Cli,
  report: CopyReport,
  source: string,
  reference: string,
  target: string,
  flags: CopyFlags,
): Promise<void> {
  const options = {
    keepOwners: flags.archive === true,
    ...(flags.chown !== undefined && { chown: flags.chown }),
    signal: cli.signal,
  };
  const path = bytesOf(target);
  const given = source === '-' ? undefined : resolveGiven(source, process.cwd());
  if (given !== undefined) await check(given.path, source, given.endsInSlash || flags.followLink === true);
  const tar =
    given === undefined
      ? counted(cli, report)
      : treeOf(report, { ...given, followLinks: flags.followLink === true, followPath: given.endsInSlash, signal: cli.signal });
  const client = await cli.connect();
  const placeAsCp = given !== undefined && given.name !== '.';
  const answer = await client.sandboxes.copyIn(reference, path, tar, { ...options, placeAsCp });
  for (const { path: name, reason } of answer.leftOut) report.leftOut({ path: stringOf(name), reason });
  report.leftOutUnnamed(Number(answer.leftOutCount) - answer.leftOut.length);
  report.entries = Number(answer.entries);
  report.bytes = Number(answer.bytes);
}

/** @throws {DroverError} path-not-found, failed-precondition */
async function check(path: string, source: string, follow: boolean): Promise<void> {
  let stats;
  try {
    stats = follow ? await stat(fsPath(path), { bigint: true }) : await lstat(fsPath(path), { bigint: true });
  } catch (error) {
    throw new DroverError('path-not-found', `${showPath(source)} cannot be read: ${reasonOf(error)}`, {
      hint: 'check the local path; write a path in a sandbox as SANDBOX:PATH',
      cause: error,
    });
  }
  const unfit = unsupportedKind(stats);
  if (unfit === undefined) return;
  throw new DroverError('failed-precondition', `${showPath(source)} ${unfit}: it cannot be copied`, {
    hint: 'copy its content through a file instead',
  });
}

async function* treeOf(report: CopyReport, options: Parameters<typeof readTree>[0]): AsyncGenerator<Uint8Array> {
  for await (const part of readTree(options)) {
    if (Buffer.isBuffer(part)) {
      yield part;
      report.moved(part.length);
    } else report.leftOut(part);
  }
}

async function* counted(cli: Cli, report: CopyReport): AsyncGenerator<Uint8Array> {
  for await (const chunk of process.stdin as AsyncIterable<Uint8Array>) {
    cli.signal.throwIfAborted();
    yield chunk;
    report.moved(chunk.length);
  }
}
