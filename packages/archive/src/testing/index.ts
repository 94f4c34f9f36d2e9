export { describeTree } from './describe-tree.ts';
export { arbitraryTree, makeTree } from './trees.ts';
