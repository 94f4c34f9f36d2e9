import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { DroverError, errnoOf, writeFileAtomic, type SandboxId } from '@drover/foundation';

const keyBytes = 32;
/** NIST SP 800-38D, section 8.2.2: random, 96 bits. */
const nonceBytes = 12;
const tagBytes = 16;

/**
 * Seals the secrets of sandboxes for the store with AES-256-GCM, bound to their sandbox and name. A stolen store reveals no secret
 * without the key.
 */
export class SecretBox {
  readonly #sealing: Buffer;
  readonly #digesting: Buffer;

  /** @param key 32 bytes */
  constructor(key: Uint8Array) {
    const derive = (purpose: string): Buffer => Buffer.from(hkdfSync('sha256', key, '', purpose, keyBytes));
    this.#sealing = derive('drover sandbox secrets');
    this.#digesting = derive('drover request digests');
  }

  /**
   * Reads the key file, and creates it (mode 0600) at the first start. Replicas of one store share the file, like the CA.
   * @throws {DroverError} invalid-config when the file does not contain a key (I-28)
   */
  static async open(path: string): Promise<SecretBox> {
    let key: Buffer;
    try {
      key = await readFile(path);
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw DroverError.from(error);
      key = randomBytes(keyBytes);
      await writeFileAtomic(path, key, 0o600);
    }
    if (key.byteLength === keyBytes) return new SecretBox(key);
    throw new DroverError('invalid-config', `${path} does not contain a key for secrets`, {
      hint: 'restore it from a backup; without it, sandboxes that have secrets cannot be started again',
    });
  }

  /** @returns nonce, ciphertext and tag, base64 */
  seal(id: SandboxId, name: string, value: Uint8Array): string {
    const nonce = randomBytes(nonceBytes);
    const cipher = createCipheriv('aes-256-gcm', this.#sealing, nonce).setAAD(boundTo(id, name));
    return Buffer.concat([nonce, cipher.update(value), cipher.final(), cipher.getAuthTag()]).toString('base64');
  }

  /** @throws {DroverError} failed-precondition when the secret was sealed with another key, or for another sandbox or name */
  unseal(id: SandboxId, name: string, sealed: string): Uint8Array<ArrayBuffer> {
    const bytes = Buffer.from(sealed, 'base64');
    try {
      const decipher = createDecipheriv('aes-256-gcm', this.#sealing, bytes.subarray(0, nonceBytes), { authTagLength: tagBytes });
      decipher.setAAD(boundTo(id, name)).setAuthTag(bytes.subarray(-tagBytes));
      return Buffer.concat([decipher.update(bytes.subarray(nonceBytes, -tagBytes)), decipher.final()]);
    } catch (error) {
      throw new DroverError('failed-precondition', `the secret ${name} cannot be decrypted with the key of this server`, {
        hint: 'restore the key file secrets.key of the data directory, or create the sandbox again',
        cause: error,
      });
    }
  }

  /** A keyed digest, equal for equal values. A plain hash of a short value could be guessed. */
  digest(value: Uint8Array): Uint8Array {
    return createHmac('sha256', this.#digesting).update(value).digest();
  }
}

function boundTo(id: SandboxId, name: string): Buffer {
  return Buffer.from(`${id}\0${name}`);
}
