export { hostStateName, sandboxLabel } from './labels.ts';
export { messageJson, oneLine, Output } from './output.ts';
export { OutputText } from './output-text.ts';
export { table, type Column } from './table.ts';
