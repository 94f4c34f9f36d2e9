import { describeBackend } from '../../backends/testing/conformance.ts';
import { openOciSuite } from '../../backends/testing/oci-harness.ts';

describeBackend('oci (runc)', () => openOciSuite('runc'));
describeBackend('oci (runc, from standbys)', () => openOciSuite('runc', 'standby'));
