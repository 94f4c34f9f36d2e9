import { Readable } from 'node:stream';
import { create } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { DroverError } from '@drover/foundation';
import { api } from '@drover/protocol';
import type { Calls } from './calls.ts';
import { copyChunkBytes } from './limits.ts';
import { chunksOf } from './streams.ts';

export interface CopyInOptions {
  /**
   * Places the topmost entry of the tar as cp(1) places a source: in the path if that is a directory or ends in a slash, otherwise as the path.
   * Absent or false: all entries go below the path, a directory that is created if it is missing.
   */
  readonly placeAsCp?: boolean;
  /** Keeps the tar's owners, by number, with set-user-ID bits, capabilities and access lists. Absent: the user of the sandbox's command. */
  readonly keepOwners?: boolean;
  /** `USER[:GROUP]` of the sandbox; not with `keepOwners`. */
  readonly chown?: string;
  readonly signal?: AbortSignal;
}

export interface CopyOutOptions {
  /** Copies the targets of symbolic links. */
  readonly followLinks?: boolean;
  /** Called for each file that the archive lacks. Absent: the first of them is an error at the end of the archive. */
  readonly onLeftOut?: (item: api.LeftOut) => void;
  readonly signal?: AbortSignal;
}

/** A path in a sandbox: text, or bytes where it is not UTF-8. */
export type SandboxPath = string | Uint8Array;

const pathFields = (path: SandboxPath): { readonly path: string } | { readonly pathBytes: Uint8Array<ArrayBuffer> } =>
  typeof path === 'string' ? { path } : { pathBytes: new Uint8Array(path) };

export async function copyIn(
  client: Client<typeof api.SandboxService>,
  calls: Calls,
  sandbox: string,
  path: SandboxPath,
  tar: AsyncIterable<Uint8Array>,
  { placeAsCp = false, keepOwners = false, chown = '', signal }: CopyInOptions,
): Promise<api.CopyInResponse> {
  // An error of the source is not one of the connection.
  let ofSource: { readonly error: unknown } | undefined;
  const messages = async function* (): AsyncGenerator<api.CopyInRequest> {
    const target = create(api.CopyTargetSchema, { sandbox, ...pathFields(path), placeAsCp, keepOwners, chown });
    yield create(api.CopyInRequestSchema, { payload: { case: 'target', value: target } });
    try {
      for await (const bytes of tar) {
        for (const value of chunksOf(bytes, copyChunkBytes)) yield create(api.CopyInRequestSchema, { payload: { case: 'tar', value } });
      }
    } catch (error) {
      ofSource = { error };
      throw error;
    }
  };
  try {
    return await calls.once((options) => client.copyIn(messages(), options), signal);
  } catch (error) {
    throw ofSource === undefined ? error : ofSource.error;
  }
}

export function copyOut(
  client: Client<typeof api.SandboxService>,
  calls: Calls,
  sandbox: string,
  path: SandboxPath,
  { followLinks = false, onLeftOut, signal }: CopyOutOptions,
): Readable {
  const bytes = async function* (): AsyncGenerator<Uint8Array> {
    let first: api.LeftOut | undefined;
    const request = { sandbox, ...pathFields(path), followLinks };
    for await (const { tar, leftOut } of calls.stream((options) => client.copyOut(request, options), signal)) {
      if (leftOut !== undefined) {
        first ??= leftOut;
        onLeftOut?.(leftOut);
      }
      if (tar.byteLength > 0) yield tar;
    }
    if (first === undefined || onLeftOut !== undefined) return;
    throw new DroverError('copy-incomplete', `${Buffer.from(first.path).toString()} ${first.reason}`, {
      hint: 'the rest of the copy is complete',
    });
  };
  return Readable.from(bytes(), { objectMode: false, highWaterMark: copyChunkBytes });
}
