// usage: kill.ts dir N [root]: N cheap hosts that follow the agent's schedule (full jitter 0.5 s..30 s; BUSY keeps the connection; TLS resumption)
import { fork } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { connect as h2connect } from 'node:http2';
import * as tls from 'node:tls';
import { create, toBinary, fromBinary } from '@bufbuild/protobuf';
import { link } from '@drover/protocol';
const [dir, n, root = '/work/main'] = process.argv.slice(2); const N = Number(n);
const f = JSON.parse(readFileSync(dir + '/fleet.json', 'utf8'));
const flags = ['--conditions=development', '--expose-gc'];
let port = 0;
const start = async () => { const p = fork(root + '/e2e/.lf2-server.ts', ['ours', dir!, String(port)], { execArgv: flags }); port = await new Promise<number>((r) => p.once('message', (m: any) => r(m.port))); return p; };
let p = await start();
const ask = (x: string) => new Promise<any>((res) => { p.once('message', res); p.send(x); });
const sleep = (ms: number) => new Promise((r) => setTimeout(r, ms));
const base = await ask('mem');
const path = '/drover.link.v1.HostLinkService/Connect';
const frame = (b: Uint8Array) => { const h = Buffer.alloc(5); h.writeUInt32BE(b.length, 1); return Buffer.concat([h, b]); };
const up = new Array(N).fill(false); let nUp = 0; let dials = 0, resumed = 0, busy = 0, failed = 0; let stopped = false;
const ctx: any[] = []; const sessions: (Buffer | undefined)[] = []; const streams: any[] = [];
function host(i: number) {
  const { id, cert } = f.hosts[i]; let attempt = 0;
  ctx[i] ??= tls.createSecureContext({ ca: f.caPem, key: f.keyPem, cert, minVersion: 'TLSv1.3' });
  const reg = frame(toBinary(link.HostFrameSchema, create(link.HostFrameSchema, { frame: { case: 'register', value: { hostId: id, hostname: 'h' + i, capacity: { cpuMillis: 1000, memoryBytes: 1n << 30n, diskBytes: 1n << 30n, slots: 10 }, runtimes: ['fake'], bootId: 'b' } } })));
  const dial = () => {
    if (stopped) return;
    dials++; let over = false;
    const lost = () => { if (over) return; over = true; if (up[i]) { up[i] = false; nUp--; } else failed++; s.destroy(); const d = Math.random() * Math.min(30000, 500 * 2 ** attempt++); setTimeout(dial, d); };
    const s = tls.connect({ host: '127.0.0.1', port, secureContext: ctx[i], ALPNProtocols: ['h2'], checkServerIdentity: () => undefined, servername: 'localhost', ...(sessions[i] ? { session: sessions[i] } : {}) }, () => { if (s.isSessionReused()) resumed++; });
    s.on('session', (x) => { sessions[i] = x; });
    s.on('error', lost); s.on('close', lost);
    const c = h2connect('https://localhost', { createConnection: () => s }); c.on('error', lost);
    const open = () => {
      const st = c.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' });
      st.on('error', () => {}); st.write(reg); let buf = Buffer.alloc(0); let told = 0;
      st.on('data', (d: Buffer) => { buf = Buffer.concat([buf, d]);
        while (buf.length >= 5) { const l = buf.readUInt32BE(1); if (buf.length < 5 + l) break; const fr = fromBinary(link.ControlFrameSchema, buf.subarray(5, 5 + l)).frame; buf = buf.subarray(5 + l);
          if (fr.case === 'welcome') { up[i] = true; nUp++; streams[i] = st; attempt = 0; }
          if (fr.case === 'goAway') { busy++; told = fr.value.reconnectAfterMs; } } });
      st.on('close', () => { if (over) return; if (told > 0) { setTimeout(() => { if (!over) open(); }, told); } else lost(); });
    };
    open();
  };
  setTimeout(dial, Math.random() * 500);
}
const all = async (limit: number) => { const t0 = performance.now(); while (nUp < N) { await sleep(20); if (performance.now() - t0 > limit) { console.log('STUCK', nUp, { dials, resumed, busy, failed }); process.exit(1); } } return ((performance.now() - t0) / 1000).toFixed(1); };
for (let i = 0; i < N; i++) host(i);
const first = await all(120000);
await sleep(5000);
const beat = frame(toBinary(link.HostFrameSchema, create(link.HostFrameSchema, { frame: { case: 'heartbeat', value: { sequence: 1n, loadMilli: 3, memoryAvailableBytes: 44n } } })));
for (const s of streams) s.write(beat);
await sleep(3000);
const m = await ask('mem');
const k = (x: string) => ((m[x] - base[x]) / N / 1000).toFixed(1);
console.log(`${root} N=${N}: first ${first} s ${JSON.stringify({ dials, resumed, busy, failed })}; mem kB/host priv ${k('priv')} rss ${k('rss')} brk ${k('brk')} heapUsed ${k('heap')} heapTotal ${k('heapTotal')}, cpu ms/host ${((m.cpu.user + m.cpu.system - base.cpu.user - base.cpu.system) / N / 1000).toFixed(2)}`);
dials = resumed = busy = failed = 0;
p.kill('SIGKILL'); await new Promise((r) => p.once('exit', r));
while (nUp > 0) await sleep(10);
const t = performance.now();
p = await start();
const listening = ((performance.now() - t) / 1000).toFixed(1);
await all(120000);
const back = ((performance.now() - t) / 1000).toFixed(1);
const m2 = await ask('mem');
console.log(`  kill -9: listening after ${listening} s, all back after ${back} s ${JSON.stringify({ dials, resumed, busy, failed })}, server cpu ms/host ${((m2.cpu.user + m2.cpu.system) / N / 1000).toFixed(2)}, client cpu s ${(process.cpuUsage().user / 1e6).toFixed(1)}`);
stopped = true; p.kill('SIGKILL'); process.exit(0);
