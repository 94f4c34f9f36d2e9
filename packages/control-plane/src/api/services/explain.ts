import { create } from '@bufbuild/protobuf';
import type { ServiceImpl } from '@connectrpc/connect';
import { api } from '@drover/protocol';
import { sandboxState, type SandboxRow } from '../../model/index.ts';
import type { TrustCheck, TrustCheckName } from '../../worldview/index.ts';
import type { ApiContext } from '../edge/index.ts';
import { sandboxToWire, factsOf, checkToWire, type SandboxFacts } from '../convert/index.ts';

/** All trust checks, in the order in which they are shown. */
const checkNames: readonly TrustCheckName[] = ['chain', 'validity', 'eku', 'cn', 'san', 'thumbprint', 'registry', 'host', 'peer-address'];
const sources: readonly TrustCheck['source'][] = ['now', 'session', 'register'];

/** All trust checks of a sandbox, with the time and the result of each. */
export function explainMethod(context: ApiContext): Pick<ServiceImpl<typeof api.SandboxService>, 'explainSandbox'> {
  const { store, sessions, clock } = context;
  return {
    async explainSandbox(request) {
      const row = await store.sandboxes.find(request.sandbox);
      const facts = (await factsOf(store, sessions, [row]))(row);
      return create(api.ExplainSandboxResponseSchema, {
        sandbox: sandboxToWire(row, facts),
        checks: allChecks([...checksNow(row, facts, clock.now()), ...facts.view.checks]),
      });
    },
  };
}

/** At least one of each name: a check that was never made is listed as unknown. */
export function allChecks(made: readonly TrustCheck[]): api.TrustCheck[] {
  return checkNames.flatMap((check) => {
    const of = made.filter((one) => one.check === check).sort((a, b) => sources.indexOf(a.source) - sources.indexOf(b.source));
    if (of.length > 0) return of.map(checkToWire);
    return [create(api.TrustCheckSchema, { check, verdict: api.TrustCheck_Verdict.UNKNOWN, evidence: 'never made' })];
  });
}

/** The checks that need no call: from the sandbox's row, its row in the registry, and its open session. */
export function checksNow(row: SandboxRow, { host, view, identity }: SandboxFacts, at: number): readonly TrustCheck[] {
  const now = (check: TrustCheckName, verdict: TrustCheck['verdict'], evidence: string): TrustCheck => {
    return { check, verdict, evidence, at, source: 'now' };
  };
  const peer = view.session.state === 'connected' ? view.session : undefined;

  const registry = (): TrustCheck => {
    if (row.revokedAt !== undefined) return now('registry', 'fail', `its identity was revoked at ${new Date(row.revokedAt).toISOString()}`);
    if (identity !== undefined) {
      return now(
        'registry',
        'pass',
        `it has been registered as ${identity.commonName} since ${new Date(identity.registeredAt).toISOString()}`,
      );
    }
    return peer === undefined
      ? now('registry', 'unknown', `the registry has no row for it, and it is ${sandboxState(row).state}, without a session`)
      : now('registry', 'fail', 'the registry has no row for it, though it has a session');
  };

  const thumbprint = (): TrustCheck => {
    if (identity === undefined) return now('thumbprint', 'unknown', 'no certificate is registered for it');
    if (peer === undefined)
      return now('thumbprint', 'unknown', `${identity.thumbprint} is registered; there is no open session to compare it with`);
    const { thumbprint: shown } = peer;
    if (shown === identity.thumbprint) return now('thumbprint', 'pass', `its session's peer showed ${shown}, which is registered`);
    if (shown === identity.nextThumbprint) return now('thumbprint', 'pass', `its session's peer showed ${shown}, to which it was renewed`);
    return now('thumbprint', 'fail', `its session's peer showed ${shown || 'no certificate'}; ${identity.thumbprint} is registered`);
  };

  const placement = (): TrustCheck => {
    if (row.hostId === undefined) return now('host', 'unknown', 'it is on no host');
    const name = host === undefined ? row.hostId : `${host.name} (${row.hostId})`;
    return host?.connected === true
      ? now('host', 'pass', `it is placed on ${name}, whose link carries its session`)
      : now('host', 'unknown', `it is placed on ${name}, which is not connected`);
  };

  const address = (): TrustCheck => {
    if (row.address === '') return now('peer-address', 'unknown', 'its host has reported no address for it');
    if (peer === undefined || peer.address === '') {
      return now('peer-address', 'unknown', `its host gave it ${row.address}; there is no open session to compare it with`);
    }
    return hostOf(peer.address) === row.address
      ? now('peer-address', 'pass', `its session is with ${peer.address}, the address that its host gave it`)
      : now('peer-address', 'fail', `its session is with ${peer.address}; its host gave it ${row.address}`);
  };

  return [thumbprint(), registry(), placement(), address()];
}

/** `10.0.0.2` of `10.0.0.2:9180`. */
function hostOf(address: string): string {
  return address.replace(/^([^:]+):\d+$/, '$1');
}
