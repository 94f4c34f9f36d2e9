// mode: raw | grpc | ours
import { readFileSync } from 'node:fs';
import { createSecureServer } from 'node:http2';
import * as tls from 'node:tls';
import * as net from 'node:net';
const [mode, dir, port = '0'] = process.argv.slice(2);
const f = JSON.parse(readFileSync(dir + '/fleet.json', 'utf8'));
let streams = 0;
let got = 0;
const opts = JSON.parse(process.env.OPTS ?? '{}');
if (mode === 'raw') {
  const s = createSecureServer({
    key: f.sv.keyPem,
    cert: f.sv.certificatePem,
    ca: f.caPem,
    requestCert: true,
    rejectUnauthorized: true,
    minVersion: 'TLSv1.3',
    ...opts,
  });
  s.on('stream', (st) => {
    streams++;
    st.respond({ ':status': 200, 'content-type': 'application/grpc' });
    st.on('data', () => {
      st.write(Buffer.from([0, 0, 0, 0, 0]));
    });
    st.on('error', () => {});
  });
  if (process.env.EARLY) {
    const d = net.createServer({ noDelay: true, pauseOnConnect: true }, (so) => {
      so.on('error', () => {});
      let seen = 0;
      so.once('readable', () => {
        seen = so.readableLength;
        if (process.env.V) console.log('hello', seen);
        s.emit('connection', so);
      });
    });
    d.listen(Number(port), '127.0.0.1', 4096, () => {
      got = (d.address() as any).port;
      process.send!({ port: got });
    });
  } else
    s.listen(Number(port), '127.0.0.1', 4096, () => {
      got = (s.address() as any).port;
      process.send!({ port: got });
    });
} else if (mode === 'grpc') {
  const { Server, ServerCredentials } = await import('@grpc/grpc-js');
  const s = new Server({ 'grpc.enable_channelz': 0, ...opts });
  s.register(
    '/drover.link.v1.HostLinkService/Connect',
    ((call: any) => {
      streams++;
      call.on('data', (b: Buffer) => call.write(b));
      call.on('error', () => {});
    }) as any,
    (b: Buffer) => b,
    (b: Buffer) => b,
    'bidi',
  );
  s.bindAsync(
    '127.0.0.1:' + port,
    ServerCredentials.createSsl(
      Buffer.from(f.caPem),
      [{ private_key: Buffer.from(f.sv.keyPem), cert_chain: Buffer.from(f.sv.certificatePem) }],
      true,
    ),
    (_e, p) => process.send!({ port: p }),
  );
} else {
  const { LinkServer } = await import('@drover/control-plane/hub');
  const { openStore } = await import('@drover/control-plane/store');
  const { openCertificateAuthority } = await import('@drover/pki');
  const { silentLogger } = await import('@drover/foundation');
  const { createHash } = await import('node:crypto');
  const ca = await openCertificateAuthority(dir + '/ca', { trustDomain: 'drover.test' });
  const store = await openStore(dir + '/db.sqlite', { logger: silentLogger });
  const t0 = performance.now();
  const keys = createHash('sha384').update(dir!).digest();
  const ls = new LinkServer({ store, ca, replica: 'r1', logger: silentLogger, ticketKeys: keys });
  const g = await ls.listen({ host: '127.0.0.1', port: Number(port) });
  if (process.env.V) console.log('listen took', (performance.now() - t0).toFixed(0));
  process.on('message', (x) => {
    if (x === 'stats') process.send!(ls.stats());
  });
  process.send!({ port: g.port });
}
process.on('message', async (x) => {
  if (x !== 'mem') return;
  global.gc?.();
  await new Promise((r) => setTimeout(r, 200));
  global.gc?.();
  global.gc?.();
  const m = process.memoryUsage();
  const sm = readFileSync('/proc/self/smaps', 'utf8');
  const priv = /Private_Dirty:\s+(\d+)/.exec(readFileSync('/proc/self/smaps_rollup', 'utf8'))![1];
  const heap = /\[heap\]\n(?:.*\n)*?Rss:\s+(\d+)/.exec(sm)?.[1];
  process.send!({
    streams,
    rss: m.rss,
    heap: m.heapUsed,
    heapTotal: m.heapTotal,
    ext: m.external,
    ab: m.arrayBuffers,
    brk: Number(heap) * 1024,
    priv: Number(priv) * 1024,
    cpu: process.cpuUsage(),
  });
});
