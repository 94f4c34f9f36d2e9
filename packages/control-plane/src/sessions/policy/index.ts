export { CrashBreaker } from './crash-breaker.ts';
export {
  afterFailure,
  afterSession,
  DialFailed,
  isDialable,
  isToRun,
  mustBeReachable,
  type ConnectionEnd,
  type Reachable,
} from './policy.ts';
export { mayHaveBegun, StartHistory } from './start-state.ts';
