/** Flags of `cp`. */
export interface CopyFlags {
  readonly archive?: boolean;
  readonly chown?: string;
  readonly followLink?: boolean;
}
