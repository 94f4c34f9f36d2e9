import { sandbox } from '@drover/protocol';
import type { DroverClient, ExecExit } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { endReportWaitMs } from '../../limits.ts';
import { explainExit } from '../../attach.ts';

/** A status that a command does not choose for itself begins here: 128 and the signal. */
const killedStatus = 128;
/** Reasons of an end of which the command's status and output say all there is. */
const ownEnds: ReadonlySet<string> = new Set(['exited', 'start-failed']);

/**
 * Says to the caller of its command why a sandbox ended, where that was not for the command: memory, time to live, a stop, a containment,
 * its host.
 * @param label what the sandbox is called in what is said
 */
export async function explainEnd(cli: Cli, client: DroverClient, id: string, label: string, exit: ExecExit): Promise<void> {
  explainExit(cli, label, exit);
  try {
    if (exit.code < killedStatus) {
      // A command that is asked to end may do so with any status. Most were not asked, and need not wait for their host's report.
      const { desiredState, spec } = await client.sandboxes.get(id);
      if (desiredState === sandbox.DesiredState.RUNNING && spec?.idleStopSeconds === 0n) return;
    }
    const ended = await client.sandboxes.waitFor(id, ['stopped', 'failed', 'deleting', 'deleted'], { timeoutMs: endReportWaitMs });
    if (!exit.outOfMemory && ended.message !== '' && !ownEnds.has(ended.reason)) cli.out.note(`${label} has ended: ${ended.message}`);
  } catch {
    // The status alone has to do: the sandbox may be deleted (--rm) already.
  }
}
