import type { Database } from '../database/index.ts';
import { EventStore } from './event-store.ts';
import { HostStore } from './hosts.ts';
import { IdentityStore } from './identities.ts';
import { SandboxStore } from './sandboxes.ts';
import { TokenStore } from './tokens.ts';
import { ViewStore } from './views.ts';
import { VolumeStore } from './volumes.ts';

/** The tables. Each call is a separate transaction or, within `together` and `once`, part of the surrounding one. */
export interface Tables {
  readonly hosts: HostStore;
  readonly sandboxes: SandboxStore;
  readonly tokens: TokenStore;
  readonly events: EventStore;
  readonly identities: IdentityStore;
  readonly views: ViewStore;
  readonly volumes: VolumeStore;
}

export function tablesOf(database: Database): Tables {
  return {
    hosts: new HostStore(database),
    sandboxes: new SandboxStore(database),
    tokens: new TokenStore(database),
    events: new EventStore(database),
    identities: new IdentityStore(database),
    views: new ViewStore(database),
    volumes: new VolumeStore(database),
  };
}
