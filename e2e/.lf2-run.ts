// usage: run.ts mode dir N   -- connects N cheap hosts, prints memory per host
import { fork } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { connect as h2connect } from 'node:http2';
import * as tls from 'node:tls';
import { create, toBinary } from '@bufbuild/protobuf';
import { link } from '@drover/protocol';
const [mode, dir, n] = process.argv.slice(2);
const N = Number(n);
const f = JSON.parse(readFileSync(dir + '/fleet.json', 'utf8'));
const flags = ['--conditions=development', '--expose-gc', ...(process.env.NFLAGS ?? '').split(' ').filter(Boolean)];
const p = fork('/work/main/e2e/.lf2-server.ts', [mode!, dir!], {
  execArgv: flags,
  ...(process.env.HT ? { execPath: '/tmp/lf2/ht.sh' } : {}),
  env: { ...process.env, ...JSON.parse(process.env.SENV ?? '{}') },
});
const port: number = await new Promise((r) => p.once('message', (m: any) => r(m.port)));
const ask = (x: string) =>
  new Promise<any>((res) => {
    p.once('message', res);
    p.send(x);
  });
const sleep = (ms: number) => new Promise((r) => setTimeout(r, ms));
await sleep(300);
const base = await ask('mem');
const path = '/drover.link.v1.HostLinkService/Connect';
const frame = (b: Uint8Array) => {
  const h = Buffer.alloc(5);
  h.writeUInt32BE(b.length, 1);
  return Buffer.concat([h, b]);
};
const beats: any[] = [];
const one = (i: number) =>
  new Promise<void>((ok, bad) => {
    const { id, cert } = f.hosts[i];
    const go = () => {
      const s = tls.connect({
        host: '127.0.0.1',
        port,
        ca: f.caPem,
        key: f.keyPem,
        cert,
        ALPNProtocols: ['h2'],
        checkServerIdentity: () => undefined,
        servername: 'localhost',
      });
      s.on('error', bad);
      const c = h2connect('https://localhost', { createConnection: () => s });
      c.on('error', bad);
      const st = c.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' });
      st.on('error', bad);
      const reg = create(link.HostFrameSchema, {
        frame: {
          case: 'register',
          value: {
            hostId: id,
            hostname: 'h' + i,
            capacity: { cpuMillis: 1000, memoryBytes: 1n << 30n, diskBytes: 1n << 30n, slots: 10 },
            runtimes: ['fake'],
            bootId: 'b',
          },
        },
      });
      st.write(frame(toBinary(link.HostFrameSchema, reg)));
      let first = true;
      st.on('data', (d: Buffer) => {
        if (!first) return;
        first = false;
        const m = mode === 'ours' ? d : undefined;
        if (m && m[5]! >> 3 !== 1) {
          c.destroy();
          setTimeout(go, 500 + Math.random() * 2000);
          return;
        }
        beats.push(() =>
          st.write(
            frame(
              toBinary(
                link.HostFrameSchema,
                create(link.HostFrameSchema, {
                  frame: { case: 'heartbeat', value: { sequence: 1n, loadMilli: 3, memoryAvailableBytes: 44n } },
                }),
              ),
            ),
          ),
        );
        ok();
      });
    };
    go();
  });
let t = performance.now();
const c0 = process.cpuUsage();
let next = 0;
await Promise.all(
  Array.from({ length: 32 }, async () => {
    while (next < N) await one(next++);
  }),
);
const took = (performance.now() - t) / 1000;
const early = await ask('mem');
for (let k = 0; k < 3; k++) {
  for (const b of beats) b();
  await sleep(1500);
}
const m = await ask('mem');
const k = (x: string) => ((m[x] - base[x]) / N / 1000).toFixed(1);
console.log(
  `${mode} ${process.env.TAG ?? ''} N=${N}: priv ${k('priv')} kB (early ${((early.priv - base.priv) / N / 1000).toFixed(1)}) brk ${k('brk')} heapUsed ${k('heap')} heapTotal ${k('heapTotal')} ext ${k('ext')} ; connect ${took.toFixed(1)} s, server cpu/host ms ${((early.cpu.user + early.cpu.system - base.cpu.user - base.cpu.system) / N / 1000).toFixed(2)}`,
);
p.kill('SIGKILL');
process.exit(0);
