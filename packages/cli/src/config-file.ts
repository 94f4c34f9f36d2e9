import type { Command, Option } from 'commander';
import { loadConfig } from '@drover/foundation/config';
import { z } from 'zod';

/** Flags of the connection, and the path of this file: a file cannot hold them. */
const notInFiles = new Set(['config', 'output', 'context', 'server', 'token', 'ca', 'help']);

/**
 * Takes from a YAML file what the command line leaves open: `pool: 10.50.0.0/16`, `label: [zone=north]`, `agent: false`. The names
 * are those of the flags, without dashes in front; a flag on the command line wins.
 * @throws {DroverError} invalid-config, with file, line, column and name
 */
export async function applyConfigFile(command: Command, path: string): Promise<void> {
  const options = command.options.filter((option) => !notInFiles.has(option.attributeName()));
  const values = await loadConfig(
    path,
    z.strictObject(Object.fromEntries(options.map((option) => [nameOf(option), kindOf(option).optional()]))),
  );
  for (const option of options) {
    const value = values[nameOf(option)];
    const source = command.getOptionValueSource(option.attributeName());
    if (value === undefined || source === 'cli' || source === 'env') continue;
    command.setOptionValueWithSource(option.attributeName(), value, 'config');
  }
}

/** `no-agent` is `agent: false` in a file. */
function nameOf(option: Option): string {
  return (option.long ?? '').replace(/^--(?:no-)?/, '');
}

function kindOf(option: Option): z.ZodType<boolean | string | string[]> {
  if (option.negate || (!option.required && !option.optional)) return z.boolean();
  const text = z.union([z.string(), z.number().transform(String)]);
  // A flag that may be repeated collects into a list.
  return option.variadic || option.parseArg !== undefined ? z.array(text) : text;
}
