/** The name by which people know a sandbox: `name`, or `project/name`. */
export function labelOf({ project, name }: { readonly project: string; readonly name: string }): string {
  return project === '' ? name : `${project}/${name}`;
}
