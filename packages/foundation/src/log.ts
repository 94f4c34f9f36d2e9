import { pino, type Logger as PinoLogger } from 'pino';
import { openLogOutput, type LogOutput } from './log-output.ts';

/** The structured log: JSON lines on stderr, one canonical line an operation. */
export type Logger = PinoLogger;

/** Names of fields that never reach the log, at any depth that pino's paths can name. */
const secretPaths = [
  'token',
  'key',
  'keyPem',
  'password',
  'secret',
  'env',
  'authorization',
  '*.token',
  '*.key',
  '*.keyPem',
  '*.password',
  '*.secret',
  '*.env',
  '*.authorization',
];

export interface LogOptions {
  /** trace, debug, info, warn, error, silent. Default: $DROVER_LOG, or info. */
  readonly level?: string;
  /** Which process this is: `control-plane`, `agent`, … */
  readonly name: string;
  /** Where the lines go instead of stderr. */
  readonly destination?: LogOutput;
}

/** A logger that writes to stderr by default, and never waits for the reader of the log (`openLogOutput`). */
export function createLogger(options: LogOptions): Logger {
  return pino(
    {
      name: options.name,
      level: options.level ?? process.env['DROVER_LOG'] ?? 'info',
      base: { pid: process.pid },
      redact: { paths: secretPaths, censor: '[redacted]' },
    },
    options.destination ?? openLogOutput(2),
  );
}

export { DescriptorOutput, openLogOutput, type LogOutput } from './log-output.ts';

/** For tests and libraries that are given none. */
export const silentLogger: Logger = pino({ level: 'silent' });
