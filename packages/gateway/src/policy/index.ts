export { forbiddenRange } from './forbidden.ts';
export { formatHost, parseAddress, parseAuthority, parseHost, type Host } from './host.ts';
export { parsePattern, type Pattern } from './pattern.ts';
export { compilePolicy, judgeAddress, judgeHost, type Policy, type Verdict } from './policy.ts';
export { PolicyTable, type SandboxPolicy } from './table.ts';
