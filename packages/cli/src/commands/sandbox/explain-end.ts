import { sandbox } from '@drover/protocol';
import type { DroverClient, ExecExit } from '@drover/sdk';
import type { Cli } from '../../cli.ts';
import { endReportWaitMs } from '../../limits.ts';
import { explainExit } from '../../attach.ts';

/** Statuses from here on stand for a signal: 128 plus its number. */
const killedStatus = 128;
/** Reasons that the command's own status and output explain. */
const selfExplanatory: ReadonlySet<string> = new Set(['exited', 'start-failed']);

/**
 * Notes on stderr why a sandbox ended, unless its command ended it: memory, time to live, a stop, containment or its host.
 * @param label names the sandbox in the note
 */
export async function explainEnd(cli: Cli, client: DroverClient, id: string, label: string, exit: ExecExit): Promise<void> {
  explainExit(cli, label, exit);
  try {
    if (exit.code < killedStatus) {
      // A command that was asked to stop may exit with any status. Most were not asked, and need not wait for the host's report.
      const { desiredState, spec } = await client.sandboxes.get(id);
      if (desiredState === sandbox.DesiredState.RUNNING && spec?.idleStopSeconds === 0n) return;
    }
    const ended = await client.sandboxes.waitFor(id, ['stopped', 'failed', 'deleting', 'deleted'], { timeoutMs: endReportWaitMs });
    if (exit.outOfMemory || ended.message === '' || selfExplanatory.has(ended.reason)) return;
    cli.out.note(`${label} ended: ${ended.message}`, ended.hint || undefined);
  } catch {
    // With --rm the sandbox may already be deleted. Its status is then the only explanation.
  }
}
