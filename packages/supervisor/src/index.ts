/** Processes under supervision: sidecars, the gateway, its daemons. */
export {
  decide,
  defaultRestartPolicy,
  initialState,
  type Action,
  type Announcement,
  type Decision,
  type Exit,
  type MachineEvent,
  type MachineState,
  type Phase,
  type RestartPolicy,
} from './machine.ts';
export { logLines } from './output.ts';
export { lastEndVariable, SupervisedProcess, type ProcessSpec, type ProcessStatus, type SupervisedProcessOptions } from './process.ts';
export { Supervisor, type SupervisorOptions } from './supervisor.ts';
