import { pino, type Logger as PinoLogger } from 'pino';
import { openLogOutput, type LogOutput } from './log-output.ts';

/** The structured log: JSON lines on stderr, one canonical line per operation. */
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
  /** The process: `control-plane`, `agent`, … */
  readonly name: string;
  /** The destination, instead of stderr. */
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

/** For tests, and for components that were given no logger. */
export const silentLogger: Logger = pino({ level: 'silent' });
