/**
 * Arrows point down only (docs/ARCHITECTURE.md). A package may import those listed for it, by name, never another's src.
 */
const below = {
  foundation: [],
  archive: ['foundation'],
  protocol: ['foundation'],
  pki: ['foundation'],
  supervisor: ['foundation'],
  gateway: ['foundation', 'protocol', 'supervisor'],
  init: ['foundation', 'archive', 'protocol', 'supervisor'],
  'control-plane': ['foundation', 'protocol', 'pki'],
  agent: ['foundation', 'archive', 'protocol', 'pki', 'supervisor', 'gateway', 'init'],
  sdk: ['foundation', 'protocol'],
  cli: ['foundation', 'archive', 'protocol', 'pki', 'supervisor', 'gateway', 'agent', 'control-plane', 'sdk'],
};
const rules = Object.entries(below).map(([name, allowed]) => ({
  name: `layers-${name}`,
  severity: 'error',
  comment: `${name} may import only: ${allowed.join(', ') || 'nothing of ours'}`,
  // Tests, and what is made for them, may look at peers from above.
  from: { path: `^packages/${name}/src`, pathNot: '\\.test\\.[jt]s$|/testing(/|\\.)' },
  to: { path: '^packages/', pathNot: `^packages/(${[name, ...allowed].join('|')})/` },
}));
module.exports = {
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
