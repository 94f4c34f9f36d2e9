import { join } from 'node:path';
import { linkSuite } from './suite.ts';

linkSuite('SQLite', (directory) => join(directory, 'store.sqlite'));
