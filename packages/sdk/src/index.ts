/** The client library of Drover's public API: `connectDrover({ server, token, caPem })`. */
export { connectDrover, DroverClient, type ConnectOptions } from './client.ts';
export { actionsOf, containmentActions, type ContainmentAction } from '@drover/protocol';
export type { CopyInOptions, CopyOutOptions, SandboxPath } from './copies.ts';
export { fromApiError } from './errors.ts';
export type { EventsApi, WatchOptions } from './events.ts';
export type { ExecExit, ExecHandle, ExecOptions, ExecStarted, TerminalSize } from './exec.ts';
export type { ForwardOptions } from './forward.ts';
export type { DrainOptions, HostsApi, JoinTokenOptions } from './hosts.ts';
export type { IdentitiesApi } from './identities.ts';
export type { ImagesApi, PruneOptions, PullOptions } from './images.ts';
export type { LogsOptions } from './logs.ts';
export { planFailed, type ReadyOptions } from './ready.ts';
export type {
  CreateOptions,
  ListOptions,
  SandboxesApi,
  SandboxStateName,
  Secret,
  SpecInit,
  StatsOptions,
  WaitOptions,
} from './sandboxes.ts';
export { sandboxStateName, sandboxStateValue } from './states.ts';
export { fetchCaByFingerprint } from './tls.ts';
export type { WatchWorldviewOptions, WorldviewApi, WorldviewOptions, WorldviewSnapshot, WorldviewUpdate } from './worldview.ts';
export type { CreateVolumeOptions, VolumesApi } from './volumes.ts';
