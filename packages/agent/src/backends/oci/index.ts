export { OciBackend, type OciBackendOptions } from './oci-backend.ts';
