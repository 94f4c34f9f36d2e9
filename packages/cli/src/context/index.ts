export { connect } from './connect.ts';
export { findContext, loadContext, parseServer, withContextName } from './context.ts';
export {
  contextNames,
  currentContext,
  listContexts,
  nameFor,
  parseContextName,
  readContext,
  removeContext,
  saveContext,
  useContext,
  type Context,
  type NamedContext,
} from './store.ts';
