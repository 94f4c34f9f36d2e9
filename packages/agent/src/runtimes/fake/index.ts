export { FakeRuntime, FakeState, type FakeOperation, type FakeOutcome, type FakeRuntimeOptions } from './fake-runtime.ts';
