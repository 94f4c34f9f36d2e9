import type { Summary } from './stats.ts';

/** A goal of the project and what came of it. */
export interface Goal {
  readonly what: string;
  /** As written in the job. */
  readonly goal: string;
  readonly figure: string;
  readonly met: boolean;
}

/** One line of a section's table. */
export interface Row {
  readonly what: string;
  /** How many at once, or how many hosts. */
  readonly at?: number;
  readonly unit: string;
  readonly summary?: Summary;
  readonly value?: number;
  /** Against what it is compared with, in the same run. */
  readonly ratio?: { readonly to: string; readonly value: number };
}

export interface Section {
  readonly name: string;
  readonly title: string;
  /** How it was measured, a sentence or two. */
  readonly how: string;
  readonly rows: readonly Row[];
  readonly goals: readonly Goal[];
  /** What was left out, and why. */
  readonly absent: readonly string[];
}

export interface Results {
  readonly at: string;
  readonly quick: boolean;
  readonly tookSeconds: number;
  readonly machine: Readonly<Record<string, string | number>>;
  readonly sections: readonly Section[];
  /** Sections that were asked for and are missing or not whole, and why. */
  readonly missing: readonly string[];
}
