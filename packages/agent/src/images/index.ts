export type { EnsureOptions, ImageConfig, ImageHandle, ImageInfo, Images, PullProgress, Submount } from './images.ts';
export type { Platform } from './manifest.ts';
export type { RegistryConfig } from './registry/registry-image.ts';
export { ImageStore, type ImageStoreOptions } from './store.ts';
