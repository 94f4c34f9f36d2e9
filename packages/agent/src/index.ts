export { agentDoctor, refuseProblems, runAgent, type AgentOptions } from './agent.ts';
export { LinuxHost } from './host.ts';
export { defaultStandbys } from './backends/index.ts';
