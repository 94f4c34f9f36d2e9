/** The processes of a sandbox: started as its users, with their output kept and shared, and their ends. */
export { exitOf, terminalChildren } from './children.ts';
export { Execs, type ExecInfo } from './execs.ts';
export { idleCheckMs, IdleWatch, workloadCpuMs, type Activity } from './idle.ts';
export { OomKills } from './oom-kills.ts';
export { ManagedProcess, type Exit, type OutputSink, type Shared } from './process.ts';
export { ReplayBudget } from './replay.ts';
export { writeSecrets } from './secrets.ts';
export { spawnProcess } from './spawn.ts';
export type { Spawner, SpawnRequest } from './spawned.ts';
export { lookUpUser } from './users.ts';
