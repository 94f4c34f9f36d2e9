export { ForeignPaths, type ForeignStatus } from './foreign-paths.ts';
