import { describeBackend } from '../testing/conformance.ts';
import { openOciSuite } from '../testing/oci-harness.ts';

describeBackend('oci (runc)', () => openOciSuite('runc'));
describeBackend('oci (runc, from standbys)', () => openOciSuite('runc', 'standby'));
