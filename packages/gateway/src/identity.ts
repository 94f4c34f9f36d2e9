/** Beside the control socket: which process the gateway is, for an agent that has to end it. */
export const gatewayIdentityFile = 'process.json';
