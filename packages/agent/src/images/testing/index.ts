/** What end-to-end tests of images use: the store by itself, and its peers. */
export { imageKeptFullDiskMs, imageKeptNoSpaceMs } from '../../limits.ts';
export { collectImages } from '../../upkeep.ts';
export { digestOf, parseDigest } from '../digest.ts';
export type { PullProgress } from '../images.ts';
export { ImageStore } from '../store.ts';
export { corpus, tarOf, type CorpusImage } from './corpus.ts';
export * from './peers.ts';
