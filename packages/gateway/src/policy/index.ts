export { judgeAddress, type AddressVerdict } from './address.ts';
export { forbiddenRange } from './forbidden.ts';
export { PolicyTable, type SandboxPolicy, type TableUpdate } from './table.ts';
export { updateFromWire, updateToWire } from './table-update.ts';
