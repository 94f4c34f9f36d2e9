import type { api } from '@drover/protocol';
import { oneLine, sandboxLabel } from '../../output/index.ts';
import { initText } from './init-text.ts';
import { age, stateText } from './show.ts';

/** The lines of `sandbox get`: `title: value` for every value, and the end of a failed step's stderr, indented. */
export function details(sandbox: api.Sandbox): readonly string[] {
  const { identity, init } = sandbox;
  const rows: readonly (readonly [string, string])[] = [
    ['name', sandboxLabel(sandbox)],
    ['id', sandbox.id],
    ['state', stateText(sandbox)],
    ['message', sandbox.message],
    ['hint', sandbox.hint],
    ...(sandbox.containment?.records ?? []).map((record) => ['contained', containmentText(record)] as const),
    ['image', sandbox.spec?.image ?? ''],
    ['digest', sandbox.imageDigest],
    ['command', (sandbox.spec?.command ?? []).join(' ')],
    ['secrets', (sandbox.spec?.secrets ?? []).map(({ name }) => name).join(' ')],
    ['host', sandbox.hostName],
    ['runtime', sandbox.runtime],
    ['address', sandbox.address],
    ['identity', identityText(identity)],
    ['thumbprint', identity?.thumbprint ?? ''],
    ['registered', ago(age(identity?.registeredAt))],
    ['last seen', ago(age(identity?.lastSeenAt))],
    ['session', sessionText(sandbox.session)],
    ['init', initText(init)],
    ['age', age(sandbox.createdAt)],
    [
      'labels',
      Object.entries(sandbox.labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(' '),
    ],
  ];
  return rows.flatMap(([title, value]) => {
    const line = `${`${title}:`.padEnd(12)} ${oneLine(value)}`;
    if (title === 'init') return value === '' ? [] : [line, ...stderrLines(init)];
    return value === '' ? [] : [line];
  });
}

const effects: Readonly<Record<string, string>> = {
  'cut-network': 'network cut',
  pause: 'paused',
  kill: 'killed',
  revoke: 'identity revoked',
};

/** `killed by admin 3m ago: phones home`. */
export function containmentText({ action, by, at, reason }: api.ContainmentRecord): string {
  return `${effects[action] ?? action}${by === '' ? '' : ` by ${by}`} ${ago(age(at))}${reason === '' ? '' : `: ${reason}`}`;
}

/** `lab.web, trusted`; `lab.web, untrusted (cn-mismatch): why`. */
function identityText(identity: api.IdentityStatus | undefined): string {
  if (identity === undefined) return '';
  const { commonName, verdict, reason, message } = identity;
  const name = commonName === '' ? '' : `${commonName}, `;
  return `${name}${verdict === '' ? 'unknown' : verdict}${reason === '' || reason === verdict ? '' : ` (${reason})`}${message === '' ? '' : `: ${message}`}`;
}

/** `connected for 3m`; `broken for 12s, 3 attempts: why not`. */
function sessionText(session: api.SessionStatus | undefined): string {
  if (session === undefined) return '';
  const { state, since, attempts, lastError } = session;
  const duration = since === undefined ? '' : ` for ${age(since)}`;
  const tries =
    attempts === 0 || (attempts === 1 && state === 'connected') ? '' : `, ${attempts} ${attempts === 1 ? 'attempt' : 'attempts'}`;
  return `${state}${duration}${tries}${state === 'connected' || lastError === '' ? '' : `: ${lastError}`}`;
}

function ago(text: string): string {
  return text === '' ? '' : `${text} ago`;
}

function stderrLines(init: api.InitStatus | undefined): readonly string[] {
  if (init?.state !== 'failed' || init.stderr.trim() === '') return [];
  return init.stderr
    .trimEnd()
    .split('\n')
    .map((line) => `  | ${oneLine(line)}`);
}
