/** What a built-in step works with: the user that it runs as, and the environment for what it starts. */
export interface Surroundings {
  readonly home: string;
  readonly env: NodeJS.ProcessEnv;
}
