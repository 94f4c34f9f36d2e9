export { SecretBox } from './box.ts';
export { checkSecrets } from './check.ts';
