export {
  eventually,
  launcher,
  networkTag,
  removeDirectory,
  repository,
  sharedDirectory,
  TestDrover,
  testsOtherCheckout,
  traces,
  type Finished,
  type RunOptions,
  type Spec,
} from './drover.ts';
export { commandLine, endProcesses, isAlive, processesUnder } from './processes.ts';
export { containers, HostNetwork, removeContainers, removeTraces, sandboxesOf, SecondHost, tracesOf } from './second-host.ts';
export { readyStandbys } from './standbys.ts';
export { BareMachine, BareRoot, cloneSource } from './bare-root.ts';
export { Terminal } from './terminal.ts';
export { addLayer, busyboxRoot, copyLibraries, digestInRegistry, Docker, largestLayer, pushImage, tool } from './images.ts';
export { World } from './world.ts';
