// A small init for the backends' tests: runs config.json's main.argv, listens on its port, writes exit.json.
'use strict';
const { spawn } = require('node:child_process');
const { closeSync, readFileSync, readSync, renameSync, rmSync, writeFileSync } = require('node:fs');
const { createServer } = require('node:net');
const { constants } = require('node:os');

const run = '/.drover/run';
const gate = process.env.DROVER_GATE;
if (gate !== undefined) {
  // As init does: everything that it opens before its sandbox begins is open by now.
  if (process.env.DROVER_STANDBY === '1') writeFileSync(`${run}/standby`, '');
  while (readSync(Number(gate), Buffer.alloc(1)) > 0);
  closeSync(Number(gate));
}
const config = JSON.parse(readFileSync(`${run}/config.json`, 'utf8'));
// As init does: its absence shows that init listens.
rmSync(`${run}/config.json`);

/** Whether the kernel has killed in this sandbox's cgroup: version 2, and version 1 or hybrid. */
function killedForMemory() {
  return ['memory.events', 'memory/memory.oom_control'].some((name) => {
    try {
      return /^oom_kill [1-9]/m.test(readFileSync(`/sys/fs/cgroup/${name}`, 'utf8'));
    } catch {
      return false;
    }
  });
}

function end(code, signal, reason, message) {
  const outOfMemory = code === 137 && killedForMemory();
  const record = { code, signal, at: Date.now(), outOfMemory, reason, message };
  writeFileSync(`${run}/exit.json.tmp`, JSON.stringify(record));
  renameSync(`${run}/exit.json.tmp`, `${run}/exit.json`);
  process.exit(code);
}

// Echoes until the other side ends, then says goodbye: shows bytes both ways and a half-closed stream.
createServer({ allowHalfOpen: true }, (socket) => {
  socket.on('error', () => socket.destroy());
  socket.on('data', (data) => socket.write(data));
  socket.on('end', () => socket.end('bye'));
}).listen(config.listen.port, config.listen.host);

let stopping = false;
const [program, ...args] = config.main.argv;
const child = spawn(program, args, { stdio: 'ignore', env: { PATH: process.env.PATH } });
child.on('error', (error) => end(127, '', 'start-failed', error.message));
child.on('exit', (code, signal) => {
  end(signal === null ? code : 128 + constants.signals[signal], signal ?? '', stopping ? 'stopped' : 'main-exited', '');
});
process.on('SIGTERM', () => {
  stopping = true;
  child.kill('SIGTERM');
});
