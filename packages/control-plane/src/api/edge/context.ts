import type { Clock, Logger } from '@drover/foundation';
import type { CertificateAuthority } from '@drover/pki';
import type { Hub } from '../../hub/index.ts';
import type { Registry } from '../../identity/index.ts';
import type { Placement } from '../../placement/index.ts';
import type { SecretBox } from '../../secrets/index.ts';
import type { Sessions } from '../../sessions/index.ts';
import type { Store } from '../../store/index.ts';
import type { Volumes } from '../../volumes/index.ts';
import type { EventFeed } from '../../feed/index.ts';

/** The components that the services use. All of them live as long as the process. */
export interface ApiContext {
  readonly store: Store;
  readonly hub: Hub;
  /** Seals the secrets of new sandboxes. */
  readonly secrets: SecretBox;
  readonly sessions: Sessions;
  readonly registry: Registry;
  readonly placement: Placement;
  readonly volumes: Volumes;
  readonly ca: CertificateAuthority;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly feed: Pick<EventFeed, 'on' | 'until'>;
  readonly system: SystemFacts;
}

export interface SystemFacts {
  readonly trustDomain: string;
  /** Milliseconds since the epoch. */
  readonly startedAt: number;
  /** `host:port` of the link for joining hosts; an empty host stands for the address that they joined at. */
  readonly linkAddress: string;
  /** `https://host:port` of this API, for printed commands. */
  readonly apiAddress: string;
}
