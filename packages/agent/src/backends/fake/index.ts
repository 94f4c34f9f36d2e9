export { FakeBackend, FakeState, type FakeBackendOptions, type FakeOperation, type FakeOutcome } from './fake-backend.ts';
