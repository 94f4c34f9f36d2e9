/** One result of checking what this host can do, for `drover doctor`. */
export interface Finding {
  readonly level: 'ok' | 'warning' | 'problem';
  readonly subject: string;
  readonly message: string;
  /** What to do about it; empty when nothing is to be done. */
  readonly hint: string;
}
