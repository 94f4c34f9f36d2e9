import type { ConnectRouter } from '@connectrpc/connect';
import { api } from '@drover/protocol';
import type { ApiContext } from '../edge/index.ts';
import { containmentMethods } from './containment.ts';
import { copyMethods } from './copies.ts';
import { eventService } from './events.ts';
import { execMethod } from './exec.ts';
import { execsMethods } from './execs.ts';
import { explainMethod } from './explain.ts';
import { forwardMethod } from './forward.ts';
import { hostService } from './hosts.ts';
import { identityService } from './identities.ts';
import { imageService } from './images.ts';
import { joinService } from './join.ts';
import { logsMethod } from './logs.ts';
import { sandboxMethods } from './sandboxes.ts';
import { statsMethod } from './stats.ts';
import { systemService } from './system.ts';
import { volumeService } from './volumes.ts';
import { waitMethod } from './wait.ts';

/** Every service of the public API. Each file here implements the methods of one concept. */
export function addServices(router: ConnectRouter, context: ApiContext): void {
  router.service(api.SandboxService, {
    ...sandboxMethods(context),
    ...waitMethod(context),
    ...copyMethods(context),
    forward: forwardMethod(context),
    exec: execMethod(context),
    ...execsMethods(context),
    logs: logsMethod(context),
    ...statsMethod(context),
    ...explainMethod(context),
    ...containmentMethods(context),
  });
  router.service(api.IdentityService, identityService(context));
  router.service(api.HostService, hostService(context));
  router.service(api.ImageService, imageService(context));
  router.service(api.VolumeService, volumeService(context));
  router.service(api.EventService, eventService(context));
  router.service(api.SystemService, systemService(context));
  router.service(api.JoinService, joinService(context));
}
