/** The generated code of drover.link.v1, which has two files. */
export * from './generated/drover/link/v1/error_pb.ts';
export * from './generated/drover/link/v1/link_pb.ts';
