import type { Clock, Logger, SandboxId } from '@drover/foundation';
import type { CertificateAuthority } from '@drover/pki';
import type { Journal } from '../events/index.ts';
import type { Registry, RegisterRefusal } from '../identity/index.ts';
import type { Store } from '../store/index.ts';
import type { Worldview } from '../worldview/index.ts';
import type { PlanSource } from './plan/index.ts';

/** The parts of the control plane that a session uses. */
export interface SessionContext {
  readonly store: { readonly sandboxes: Pick<Store['sandboxes'], 'get'> };
  readonly journal: Journal;
  readonly registry: Pick<Registry, 'standing' | 'secondToken' | 'renewed' | 'seen'>;
  readonly worldview: Pick<Worldview, 'get' | 'record'>;
  readonly ca: Pick<CertificateAuthority, 'renewSandbox'>;
  readonly plans: PlanSource;
  /** Why the last Register with the sandbox's certificate of this thumbprint was refused; undefined when none was. */
  readonly lastRefusal: (id: SandboxId, thumbprint: string) => RegisterRefusal | undefined;
  /** Stores that this start failed (I-30). False: the store knows of another start or none. */
  readonly initFailed: (id: SandboxId, startCount: number, message: string) => Promise<boolean>;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly random?: () => number;
}
