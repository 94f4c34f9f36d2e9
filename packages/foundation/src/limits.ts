/** Characters of a configuration file; a longer one is refused with invalid-config. */
export const maxConfigBytes = 1024 * 1024;
