/** Supervision of processes: those that Drover launches, and those that it attaches to. */
export { channelHealth, channelVariable, connectToSupervisor } from './channel.ts';
export { daemon, isDaemon, lastEndVariable, signalGroup, type DaemonSpec } from './daemon.ts';
export { probing, type Health, type HealthConnection } from './health.ts';
export { endProcess, isRunning, ownIdentity, type ProcessIdentity } from './identity.ts';
export { isAlive, type Announcement, type Exit, type LifecyclePolicy, type Phase } from './lifecycle.ts';
export { logLines, type LineSink } from './output.ts';
export { onSignals, reapOrphans } from './pid1.ts';
export { SupervisedProcess, type Child, type ProcessSpec, type ProcessStatus, type SupervisedProcessOptions } from './process.ts';
export { openListener, receiveSockets, type ListenAddress, type ListeningSocket, type PassedDescriptor } from './sockets.ts';
export { Supervisor, type SignalPlan, type SupervisorOptions } from './supervisor.ts';
