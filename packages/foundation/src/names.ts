import { DroverError } from './errors.ts';
import { clip, type Branded } from './ids.ts';

export type Project = Branded<'project'>;
export type Name = Branded<'name'>;

/** Limits so that the CN `<project>.<name>` has at most 64 characters (I-5; RFC 5280, ub-common-name). */
export const maxProjectLength = 24;
export const maxNameLength = 39;

const label = /^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$/;

function check(kind: string, text: string, max: number): void {
  if (text.length > max) {
    throw new DroverError('invalid-name', `the ${kind} ${JSON.stringify(clip(text))} has ${text.length} characters`, {
      hint: `use at most ${max}`,
    });
  }
  if (!label.test(text)) {
    throw new DroverError('invalid-name', `${JSON.stringify(clip(text))} cannot be a ${kind}`, {
      hint: 'use lower-case letters, digits and hyphens, beginning and ending with a letter or digit',
    });
  }
}

/** A project; the empty one is allowed (I-5). @throws {DroverError} invalid-name */
export function parseProject(text: string): Project {
  if (text !== '') check('project', text, maxProjectLength);
  return text as Project;
}

/** A sandbox's name within its project. @throws {DroverError} invalid-name */
export function parseName(text: string): Name {
  check('name', text, maxNameLength);
  return text as Name;
}

/** The CN of a sandbox's certificate (I-5). Without a project it is the name; a name has no dot, so that both forms are unambiguous. */
export function canonicalCommonName(project: Project, name: Name): string {
  return project === '' ? name : `${project}.${name}`;
}

const adjectives =
  'amber bold brisk calm clear deft dusky early fleet glad hardy keen light lucid mild noble plain quick quiet ready sober stout swift warm'.split(
    ' ',
  );
const nouns =
  'alder birch brook cedar cliff crane dale fern finch glade heath heron larch marsh mill otter pine reed ridge rowan stone swift vale wren'.split(
    ' ',
  );

/** A generated name for a sandbox: two words and four random characters. */
export function makeUpName(random: () => number = Math.random): Name {
  const pick = (words: readonly string[]): string => words[Math.floor(random() * words.length)] ?? 'box';
  const tail = Math.floor(random() * 36 ** 4)
    .toString(36)
    .padStart(4, '0');
  return `${pick(adjectives)}-${pick(nouns)}-${tail}` as Name;
}
