export { treeChunkBytes } from './limits.ts';
export { byteString, bytesOf, fsPath, showPath, stringOf } from './names.ts';
export { placeOf, resolveGiven, type GivenPath } from './placement.ts';
export { readTree, unsupportedKind, type LeftOut, type ReadTreeOptions } from './read-tree.ts';
export type { SparseMap } from './sparse.ts';
export { TarParser, type TarEntry, type TarHandler } from './tar-reader.ts';
export { writeTree, type WriteTreeOptions, type Written } from './write-tree.ts';
