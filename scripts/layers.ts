/**
 * The folders and files of a package lie in layers. `layers` of .dependency-cruiser.cjs lists them, bottom first. An import may only go to
 * a lower layer, so that folders form no cycle, and enters a folder through its index.ts.
 */

export type Layers = readonly (readonly string[])[];

/** Both paths start at the root of the repository. */
export interface Import {
  readonly from: string;
  readonly to: string;
  /** Whether it is an `import()`, which may name a file to load that file alone. */
  readonly dynamic: boolean;
}

export interface Problem {
  /** The line of structure-exceptions.json that permits it. */
  readonly exception: string;
  readonly sentence: string;
}

const inPackage = /^packages\/([^/]+)\/src\/(.+)$/;

/** @returns the imports that break the layers; tests may import from everywhere */
export function layerProblems(imports: readonly Import[], layers: Readonly<Record<string, Layers>>): readonly Problem[] {
  return imports.flatMap(({ from, to, dynamic }) => {
    const [, name = '', source = ''] = inPackage.exec(from) ?? [];
    const [, toName, target = ''] = inPackage.exec(to) ?? [];
    const own = layers[name];
    if (name === '' || name !== toName || isTest(from) || [source, target].some((path) => path.startsWith('generated/'))) return [];
    // A package without folders needs no layers.
    if (own === undefined && !source.includes('/') && !target.includes('/')) return [];
    const [importer, imported] = [placeOf(source, own), placeOf(target, own)];
    if (importer === undefined || imported === undefined) {
      const path = importer === undefined ? from : to;
      return [{ exception: `${path} (no layer)`, sentence: `${path} is in no layer: add it to \`layers\` in .dependency-cruiser.cjs` }];
    }
    if (importer.name === imported.name) return [];
    const pair = `${name}: ${importer.name} → ${imported.name}`;
    const problems: Problem[] = [];
    if (imported.level >= importer.level) {
      problems.push({
        exception: `${pair} (upward)`,
        sentence: `${from} imports ${to}, but ${imported.name} does not lie below ${importer.name}`,
      });
    }
    if (!dynamic && target !== imported.name && target !== `${imported.name}/index.ts`) {
      problems.push({
        exception: `${pair} (past index.ts)`,
        sentence: `${from} imports ${to}: import ${imported.name} through its index.ts`,
      });
    }
    return problems;
  });
}

/** Returns the layer's entry that holds a path, the longest if several do. */
function placeOf(path: string, layers: Layers | undefined): { readonly name: string; readonly level: number } | undefined {
  return (layers ?? [])
    .flatMap((names, level) => names.map((name) => ({ name, level })))
    .filter(({ name }) => path === name || path.startsWith(`${name}/`))
    .toSorted((a, b) => b.name.length - a.name.length)[0];
}

export function isTest(path: string): boolean {
  return /\.test\.ts$|\/testing[/.]|\/conformance\.ts$/.test(path);
}

/** @returns the problems without an exception, and the exceptions without a problem, because the list may only shrink */
export function withExceptions(problems: readonly Problem[], exceptions: readonly string[]): readonly string[] {
  const needed = new Set(problems.map(({ exception }) => exception));
  return [
    ...problems.filter(({ exception }) => !exceptions.includes(exception)).map(({ sentence }) => sentence),
    ...exceptions
      .filter((exception) => !needed.has(exception))
      .map((exception) => `remove "${exception}" from scripts/structure-exceptions.json: nothing needs it any more`),
  ];
}
