import type { X509Certificate } from 'node:crypto';
import { DroverError, withDeadline, type SandboxId } from '@drover/foundation';
import { renewAt, type IssuedCertificate } from '@drover/pki';
import { certificateCheckMs, sandboxRenewalRetryMs, stepMs } from '../limits.ts';
import { StreamLost, type SessionStream } from './connection/index.ts';
import type { SessionContext } from './context.ts';

export interface RenewedPeer {
  readonly id: SandboxId;
  readonly certificate: X509Certificate;
  readonly commonName: string;
  /** Of the peer's current certificate: the presented one, or its renewal for the same key. */
  thumbprint: string;
}

/**
 * Renews the certificate of the peer for its present key, at two thirds of the certificate's life (I-6), until the signal aborts.
 * @param whenRenewed called after each renewal; throws to end the renewals
 */
export async function renewCertificates(
  { clock, ca, registry, journal, logger }: Pick<SessionContext, 'clock' | 'ca' | 'registry' | 'journal' | 'logger'>,
  peer: RenewedPeer,
  stream: SessionStream,
  whenRenewed: () => void,
  signal: AbortSignal,
): Promise<void> {
  const key = peer.certificate.publicKey.export({ type: 'spki', format: 'der' });
  let due = renewAt(peer.certificate.toString());
  let pending: IssuedCertificate | undefined;
  while (!signal.aborted) {
    const wait = due - clock.now();
    if (wait > 0) {
      await clock.sleep(Math.min(wait, certificateCheckMs), signal);
      continue;
    }
    try {
      // Offer a pending certificate again, since init may have installed it: the registry holds only one pending thumbprint.
      if (pending === undefined || clock.now() >= renewAt(pending.certificatePem)) {
        pending = await ca.renewSandbox(peer.id, peer.commonName, key);
      }
      const { certificatePem, thumbprint, notAfter } = pending;
      // Update the registry first: init may present the certificate as soon as it receives it.
      await registry.renewed(peer.id, thumbprint, peer.thumbprint);
      const response = stream.request({ case: 'installCertificate', value: { certificatePem } }, 'certificateInstalled');
      await withDeadline(response, stepMs, clock, () => new DroverError('timed-out', 'init did not install the certificate in time'));
      due = Math.max(renewAt(certificatePem), clock.now() + sandboxRenewalRetryMs);
      // The handshake has proved the possession of the key.
      peer.thumbprint = thumbprint;
      registry.seen(peer.id, thumbprint);
      journal.publish({ kind: 'session', type: 'SessionRenewed', subject: peer.id, data: { thumbprint } });
      logger.info({ sandbox: peer.id, thumbprint, notAfter }, 'the certificate of a sandbox was renewed');
      pending = undefined;
    } catch (error) {
      if (error instanceof StreamLost) throw error;
      logger.warn({ sandbox: peer.id, err: error }, 'the certificate of a sandbox could not be renewed; retrying');
      due = clock.now() + sandboxRenewalRetryMs;
      continue;
    }
    whenRenewed();
  }
}
