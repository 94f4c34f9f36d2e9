export { runChecks, tryListen, type Finding } from './checks.ts';
export { checkMachine, hostChecks } from './machine-check.ts';
