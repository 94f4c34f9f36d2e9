export { checkArgv, checkEnv, checkSpec, checkUser, checkWorkdir, parseIdentity, requestOf } from './parse.ts';
