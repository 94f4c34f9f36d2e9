export { StoredWorldview, type StoredWorldviewOptions } from './journal.ts';
