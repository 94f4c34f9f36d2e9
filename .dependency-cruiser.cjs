/**
 * Imports go down only (docs/ARCHITECTURE.md). A package may import those listed for it, by name, never another package's src.
 */
const below = {
  foundation: [],
  spec: ['foundation'],
  linux: ['foundation'],
  archive: ['foundation', 'linux'],
  protocol: ['foundation', 'spec'],
  pki: ['foundation'],
  supervisor: ['foundation', 'linux'],
  gateway: ['foundation', 'spec', 'linux', 'protocol', 'supervisor'],
  init: ['foundation', 'spec', 'linux', 'archive', 'protocol', 'supervisor'],
  'control-plane': ['foundation', 'spec', 'protocol', 'pki'],
  agent: ['foundation', 'spec', 'linux', 'archive', 'protocol', 'pki', 'supervisor', 'gateway', 'init'],
  sdk: ['foundation', 'spec', 'protocol'],
  cli: ['foundation', 'spec', 'linux', 'archive', 'protocol', 'pki', 'supervisor', 'gateway', 'agent', 'control-plane', 'sdk'],
};

/**
 * The layers inside each package that has folders, bottom first: folders, and files beside them. A folder or file may import only those
 * of the layers below its own, and a folder only through its index.ts (scripts/layers.ts). A path with a slash names an inner folder.
 */
const layers = {
  spec: [
    ['limits.ts', 'invalid.ts'],
    ['command.ts', 'durations.ts', 'labels.ts', 'names.ts', 'paths.ts', 'ports.ts', 'signals.ts', 'sizes.ts'],
    ['image-reference.ts', 'mounts.ts', 'policy', 'setup'],
    ['sandbox'],
    ['index.ts'],
  ],
  protocol: [
    ['limits.ts', 'http2-lifetime.ts', 'link.ts'],
    ['errors.ts', 'containment.ts', 'states.ts', 'log-position.ts', 'grpc.ts', 'tunnel.ts', 'spec.ts', 'http2-client.ts'],
    ['host-stream.ts', 'rpc'],
    ['index.ts'],
  ],
  'control-plane': [
    ['limits.ts'],
    ['secrets', 'events'],
    ['model', 'worldview'],
    ['database'],
    ['store'],
    ['feed', 'journal'],
    ['identity', 'placement'],
    ['hub'],
    ['volumes', 'sandbox-facing', 'reconcile'],
    ['sessions/connection'],
    ['sessions/plan', 'sessions/policy'],
    ['sessions'],
    ['api/edge'],
    ['api/convert'],
    ['api/reach'],
    ['api/services'],
    ['api'],
    ['server'],
    ['index.ts'],
  ],
  agent: [
    ['limits.ts', 'concurrency.ts', 'finding.ts'],
    ['foreign'],
    ['disks'],
    ['images', 'volumes', 'network'],
    ['backends'],
    ['sandboxes'],
    ['link'],
    ['host.ts', 'upkeep.ts'],
    ['agent.ts'],
    ['index.ts'],
  ],
  init: [
    ['limits.ts', 'config.ts', 'bundle.ts'],
    ['own-program.ts', 'become.ts', 'server'],
    ['identity', 'processes', 'methods.ts'],
    ['plan', 'logs', 'built-in-steps'],
    ['sandbox.ts'],
    ['files', 'session'],
    ['service.ts'],
    ['warm-up'],
    ['pid1'],
    ['entry.ts', 'index.ts'],
  ],
  supervisor: [
    ['limits.ts'],
    ['lifecycle.ts', 'health.ts', 'output.ts', 'sockets.ts', 'identity.ts', 'pid1.ts'],
    ['process.ts', 'channel.ts'],
    ['daemon.ts', 'supervisor.ts'],
    ['index.ts'],
  ],
  gateway: [
    ['limits.ts'],
    ['policy'],
    ['daemon.ts', 'log.ts', 'state.ts'],
    ['egress'],
    ['control', 'daemons.ts', 'gateway.ts'],
    ['main.ts'],
    ['bin.ts', 'index.ts'],
  ],
  cli: [
    ['limits.ts', 'arguments.ts', 'config-file.ts'],
    ['parse.ts', 'terminal'],
    ['output'],
    ['cli.ts'],
    ['attach.ts', 'context', 'transfer', 'settings', 'definition.ts'],
    ['doctor', 'command-line.ts'],
    ['up', 'completion'],
    ['commands'],
    ['docker'],
    ['program.ts'],
    ['run-cli.ts'],
    ['main.ts', 'index.ts'],
  ],
};
const rules = Object.entries(below).map(([name, allowed]) => ({
  name: `layers-${name}`,
  severity: 'error',
  comment: `${name} may import only: ${allowed.join(', ') || 'no other package'}`,
  // Tests and their helpers may import packages from above.
  from: { path: `^packages/${name}/src`, pathNot: '\\.test\\.[jt]s$|/testing(/|\\.)' },
  to: { path: '^packages/', pathNot: `^packages/(${[name, ...allowed].join('|')})/` },
}));
module.exports = {
  layers,
  forbidden: [
    ...rules,
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true, dependencyTypesNot: ['type-only'] } },
    {
      name: 'no-foreign-src',
      severity: 'error',
      comment: 'import another package by its name',
      from: { path: '^packages/([^/]+)/' },
      to: { path: '^packages/([^/]+)/src', pathNot: '^packages/$1/', dependencyTypes: ['local'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules|dist|generated' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['development', 'import', 'node', 'default'] },
  },
};
