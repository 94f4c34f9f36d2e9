import { counted, formatAge } from '@drover/foundation';
import type { api } from '@drover/protocol';
import { oneLine } from '../../output/index.ts';
import { endOf, failureText, stepText } from '../sandbox/init-text.ts';

/** An event's data: the values that a control plane of this version writes, each perhaps absent in one of another. */
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
  get who(): string {
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

/** What each event says: of sandboxes and hosts, and the typed ones of sessions, identities and init plans (I-34). */
const sentences: Readonly<Record<string, (data: Data) => string>> = {
  SandboxCreated: (d) => `${d.who}, of ${d.text('image')}`,
  SandboxScheduled: (d) => `${d.who}, on ${d.text('hostId')}`,
  SandboxUnschedulable: (d) => `${d.who}${d.after('message')}`,
  SandboxDesiredChanged: (d) => `${d.who}: ${d.text('desired') || (d.is('networkCut') ? 'its network cut' : 'its network open')}`,
  SandboxStateChanged: (d) => `${d.who}: ${d.text('from')} to ${d.text('to')}${d.after('message')}`,
  SandboxOomKill: (d) => `${d.who}: out of memory, ${d.text('process') || 'a process'} was killed${times(d.number('count'))}`,
  SandboxLimitReached: (d) => `${d.who}: ${d.text('message')}`,
  SandboxNetworkCut: (d) => d.who,
  SandboxNetworkRestored: (d) => d.who,
  SandboxRegistrationClosed: (d) => d.who,
  SandboxRegistrationOpened: (d) => d.who,
  SandboxContained: (d) => `${d.who}: ${d.text('action')} by ${d.text('by')}${d.after('reason')}`,
  SandboxReleased: (d) => `${d.who}: ${d.text('action')}`,
  SandboxLost: (d) => `${d.who}: ${d.text('reason')}`,
  SandboxAdopted: (d) => d.who,
  SandboxDeleted: (d) => d.who,
  HostJoined: (d) => d.who,
  HostReady: (d) => `${d.who}${d.text('agentVersion') === '' ? '' : `, agent ${d.text('agentVersion')}`}`,
  HostDown: (d) => `${d.who}${d.after('reason')}`,
  HostCordoned: (d) => d.who,
  HostUncordoned: (d) => d.who,
  HostDraining: (d) => d.who,
  HostRemoved: (d) => d.who,
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
    `${d.who}: ${d.text('method')} ${d.text('host')}:${d.number('port')} refused${times(d.number('count'))}, ${d.text('rule')}`,
  InitStarted: (d) => `${counted(d.number('count'), 'step')}, start ${d.number('startCount')}`,
  InitStepStarted: (d) => d.step,
  InitStepCompleted: (d) => `${d.step}: exit ${d.number('exitCode')} after ${d.duration}`,
  InitStepFailed: (d) => `${d.step}: ${d.failure}${d.after('stderr') || d.after('message')}`,
  InitCompleted: (d) => `${counted(d.number('count'), 'step')} in ${d.duration}`,
  InitFailed: (d) => `${d.text('step') === '' ? '' : `${d.step}: `}${d.failure}${d.after('stderr') || d.after('message')}`,
};

const times = (count: number): string => (count > 1 ? ` ${count} times` : '');

/** Kinds whose sentences are about a part of a sandbox. */
const ofSandboxes: ReadonlySet<string> = new Set(['session', 'identity', 'init']);

/** An event's data as a person reads it, on one line: a sentence, or the JSON of an event that has none. */
export function eventText({ kind, type, dataJson }: api.Event): string {
  const sentence = Object.hasOwn(sentences, type) ? sentences[type] : undefined;
  if (dataJson === '' || dataJson === '{}') return '';
  if (sentence === undefined) return oneLine(dataJson);
  const data = new Data(JSON.parse(dataJson) as Readonly<Record<string, unknown>>);
  // The sentences of sandboxes and hosts name them themselves. Events of earlier versions carry no names.
  const whose = ofSandboxes.has(kind) && data.who !== '' ? `${data.who}: ` : '';
  return oneLine(`${whose}${sentence(data)}`);
}
