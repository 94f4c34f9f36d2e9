import { counted, formatAge } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { oneLine } from '../../output/index.ts';
import { endOf, failureText, stepText } from '../sandbox/init-text.ts';

/** An event's data. A control plane of another version may leave values out. */
class Data {
  readonly #values: Readonly<Record<string, unknown>>;

  constructor(values: Readonly<Record<string, unknown>>) {
    this.#values = values;
  }

  text(name: string): string {
    const value = this.#values[name];
    return typeof value === 'string' ? value : '';
  }

  number(name: string): number {
    const value = this.#values[name];
    return typeof value === 'number' ? value : 0;
  }

  is(name: string): boolean {
    return this.#values[name] === true;
  }

  /** `: …`, or nothing. */
  after(name: string): string {
    const value = endOf(this.text(name));
    return value === '' ? '' : `: ${value}`;
  }

  /** The sandbox's label, or the host's name. */
  get subject(): string {
    const project = this.text('project');
    return project === '' ? this.text('name') : `${project}/${this.text('name')}`;
  }

  get step(): string {
    return stepText({ index: this.number('index'), count: this.number('count'), name: this.text('step') });
  }

  get failure(): string {
    const { exitCode } = this.#values;
    return failureText({ reason: this.text('reason'), exitCode: typeof exitCode === 'number' ? exitCode : undefined });
  }

  get thumbprint(): string {
    return this.text('thumbprint').slice(0, 16);
  }

  get duration(): string {
    const ms = this.number('durationMs');
    return ms < 1_000 ? `${ms} ms` : formatAge(ms);
  }
}

/** A sentence for each event type (I-34). */
const sentences: Readonly<Record<string, (data: Data) => string>> = {
  SandboxCreated: (d) => `${d.subject}, of ${d.text('image')}`,
  SandboxScheduled: (d) => `${d.subject}, on ${d.text('hostId')}`,
  SandboxUnschedulable: (d) => `${d.subject}${d.after('message')}`,
  SandboxDesiredChanged: (d) => `${d.subject}: ${d.text('desired') || (d.is('networkCut') ? 'its network cut' : 'its network open')}`,
  SandboxStateChanged: (d) => `${d.subject}: ${d.text('from')} to ${d.text('to')}${d.after('message')}`,
  SandboxOomKill: (d) => `${d.subject}: out of memory, ${d.text('process') || 'a process'} was killed${times(d.number('count'))}`,
  SandboxLimitReached: (d) => `${d.subject}: ${d.text('message')}`,
  SandboxNetworkCut: (d) => d.subject,
  SandboxNetworkRestored: (d) => d.subject,
  SandboxRegistrationClosed: (d) => d.subject,
  SandboxRegistrationOpened: (d) => d.subject,
  SandboxContained: (d) => `${d.subject}: ${d.text('action')} by ${d.text('by')}${d.after('reason')}`,
  SandboxReleased: (d) => `${d.subject}: ${d.text('action')}`,
  SandboxLost: (d) => `${d.subject}: ${d.text('reason')}`,
  SandboxAdopted: (d) => d.subject,
  SandboxDeleted: (d) => d.subject,
  HostJoined: (d) => d.subject,
  HostReady: (d) => `${d.subject}${d.text('agentVersion') === '' ? '' : `, agent ${d.text('agentVersion')}`}`,
  HostDown: (d) => `${d.subject}${d.after('reason')}`,
  HostCordoned: (d) => d.subject,
  HostUncordoned: (d) => d.subject,
  HostDraining: (d) => d.subject,
  HostRemoved: (d) => d.subject,
  SessionThrottled: (d) => d.text('message'),
  SessionConnecting: (d) => `attempt ${d.number('attempt')}`,
  SessionConnected: (d) =>
    `${d.text('peerCommonName') || 'a peer without a certificate'} at ${d.text('address')}, attempt ${d.number('attempts')}, thumbprint ${d.thumbprint || 'none'}`,
  SessionFailed: (d) => `${d.text('reason')}, after ${counted(d.number('attempts'), 'attempt')}${d.after('message')}`,
  SessionBroken: (d) => d.text('message'),
  SessionDelayed: (d) => d.text('message'),
  SessionRenewed: (d) => `thumbprint ${d.thumbprint}`,
  AgentRegistered: (d) => (d.is('ok') ? `thumbprint ${d.thumbprint}, start ${d.number('startCount')}` : `refused${d.after('message')}`),
  AgentUntrusted: (d) => `${d.text('reason')}${d.after('message')}`,
  AgentTrusted: (d) => `thumbprint ${d.thumbprint}`,
  IdentityEvicted: (d) => `${d.text('why')}, thumbprint ${d.thumbprint}`,
  IdentityRenewed: (d) => `thumbprint ${d.thumbprint}`,
  ReapDegraded: (d) => `after ${counted(d.number('attempts'), 'attempt')}${d.after('message')}`,
  EgressDenied: (d) =>
    `${d.subject}: ${d.text('method')} ${d.text('host')}:${d.number('port')} refused${times(d.number('count'))}, ${d.text('rule')}`,
  InitStarted: (d) => `${counted(d.number('count'), 'step')}, start ${d.number('startCount')}`,
  InitStepStarted: (d) => d.step,
  InitStepCompleted: (d) => `${d.step}: exit ${d.number('exitCode')} after ${d.duration}`,
  InitStepFailed: (d) => `${d.step}: ${d.failure}${d.after('stderr') || d.after('message')}`,
  InitCompleted: (d) => `${counted(d.number('count'), 'step')} in ${d.duration}`,
  InitFailed: (d) => `${d.text('step') === '' ? '' : `${d.step}: `}${d.failure}${d.after('stderr') || d.after('message')}`,
};

const times = (count: number): string => (count > 1 ? ` ${count} times` : '');

/** Kinds whose sentences do not name the sandbox themselves. */
const unnamed: ReadonlySet<string> = new Set(['session', 'identity', 'init']);

/** An event's data on one line: a sentence, or its JSON if the type has no sentence. */
export function eventText({ kind, type, dataJson }: api.Event): string {
  const sentence = Object.hasOwn(sentences, type) ? sentences[type] : undefined;
  if (dataJson === '' || dataJson === '{}') return '';
  if (sentence === undefined) return oneLine(dataJson);
  const data = new Data(JSON.parse(dataJson) as Readonly<Record<string, unknown>>);
  // Events of earlier versions carry no names.
  const prefix = unnamed.has(kind) && data.subject !== '' ? `${data.subject}: ` : '';
  return oneLine(`${prefix}${sentence(data)}`);
}
