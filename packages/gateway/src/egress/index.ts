export type { Decision } from './decisions.ts';
export { systemResolve, type Resolve } from './dial.ts';
export { RefusalReports, type RefusalReport } from './refusal-reports.ts';
export { runEgress } from './run.ts';
export { serveControl, type ControlServiceOptions } from './service.ts';
export { EgressProxy, type EgressProxyOptions, type EgressStats, type ListenOn } from './proxy.ts';
