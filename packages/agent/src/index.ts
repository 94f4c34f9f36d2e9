export { agentDoctor, runAgent, type AgentOptions } from './agent.ts';
export { LinuxHost } from './host.ts';
