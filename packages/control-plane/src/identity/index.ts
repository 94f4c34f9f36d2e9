export { joinHost } from './join.ts';
export { answerSigningRequest, type SigningDependencies } from './signing.ts';
