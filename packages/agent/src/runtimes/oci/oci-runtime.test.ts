import { describeRuntime } from '../conformance.ts';
import { openOciHarness } from '../testing/oci-harness.ts';

describeRuntime('oci (runc)', () => openOciHarness('runc'));
describeRuntime('oci (runc, of standbys)', () => openOciHarness('runc', 'standby'));
