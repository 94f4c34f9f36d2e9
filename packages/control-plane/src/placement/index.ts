export { Placement, placeSandbox, type PlacementOptions } from './placement.ts';
export { allocatable, placementRequest, plan, type HostRefusal, type PlacementRequest, type Plan } from './plan.ts';
