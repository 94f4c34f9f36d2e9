export { executePlan, requestReady } from './execute.ts';
export { planSource, stepNames, type PlanSource, type PlanStep } from './plan.ts';
