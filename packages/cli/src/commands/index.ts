export { defineHostCommands } from './host/define.ts';
export { defineIdentityCommands } from './identity/define.ts';
export { defineImageCommands, imageListFlags, imageRemoveFlags, pullFlags } from './image/define.ts';
export { defineSandboxCommands, listFlags, noWaitFlag, removeFlags, stopFlags } from './sandbox/define.ts';
export { defineContextCommands, defineEventCommands, defineMachineCommands, defineProgramCommands } from './system/define.ts';
export { defineVolumeCommands } from './volume/define.ts';
