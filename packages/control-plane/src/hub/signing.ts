import { DroverError, type Logger } from '@drover/foundation';
import { errorToWire, type link } from '@drover/protocol';
import { signingsPerHost } from '@drover/spec';
import { answerSigningRequest, type SigningDependencies } from '../identity/index.ts';
import type { HostLink } from './host-link.ts';

/** Handles one signing request on its link (L-2, I-5), at most `signingsPerHost` concurrently. Never rejects. */
export async function sign(dependencies: SigningDependencies, logger: Logger, held: HostLink, request: link.SigningRequest): Promise<void> {
  try {
    if (held.signings >= signingsPerHost) {
      const error = errorToWire(new DroverError('queue-full', 'too many concurrent signing requests', { hint: 'try again in a moment' }));
      held.send({ case: 'signingResponse', value: { requestId: request.requestId, error } });
      return;
    }
    held.signings++;
    try {
      held.send({ case: 'signingResponse', value: await answerSigningRequest(dependencies, held.hostId, request, logger) });
    } finally {
      held.signings--;
    }
  } catch (error) {
    // The stream ended or its queue is full: the host repeats the request.
    logger.debug({ err: error, hostId: held.hostId }, 'a signing request could not be answered');
  }
}
