// Limits that two processes must agree on, and those of the inputs that this package parses.

/** Processes and threads that a sandbox's limit may name: all that Linux can have. More is refused. Source: PID_MAX_LIMIT, include/linux/threads.h. */
export const maxPids = 4_194_304;
/** Thousandths of a CPU that a sandbox or a host may name. More is refused. */
export const maxCpuMillis = 1_000_000;
/** Labels of one sandbox or host. More is refused. */
export const maxLabels = 64;
/** The longest grace between SIGTERM and SIGKILL that can be asked for. Milliseconds; a longer one is refused. */
export const maxStopGraceMs = 3_600_000;
/** The grace of a stop for which neither the sandbox nor the caller names one. Milliseconds. */
export const defaultStopGraceMs = 10_000;
/** The grace of a kill: no SIGTERM is sent, and a paused sandbox does not run again (I-4). Milliseconds; 0 stands for the sandbox's own grace. */
export const killGraceMs = 1;
/** The longest time to live, and the longest idle time, of a sandbox. Seconds; a longer one is refused. */
export const maxTtlSeconds = 10 * 365 * 86_400;
/** The longest time that an exec may run without a client. Seconds; in milliseconds it fits into 32 bits. A longer one is refused. */
export const maxLingerSeconds = 30 * 86_400;
/** The longest lifetime of a join token (seconds), and how many hosts it may let in. More is refused. */
export const maxJoinTtlSeconds = 30 * 86_400;
export const maxJoinUses = 10_000;
/** The least memory that a sandbox can be limited to: init has to fit in. Bytes; less is refused. */
export const minMemoryBytes = 16 * 1024 * 1024;
/** A volume's least and greatest size. Bytes; another is refused. Source of the greatest: ext4 with blocks of 4 KiB. */
export const minVolumeBytes = 16 * 1024 ** 2;
export const maxVolumeBytes = 16 * 1024 ** 4;
/** Bytes of a path in a sandbox (Linux: PATH_MAX). A longer one is refused. */
export const maxPathBytes = 4096;
/** Characters of an image reference. A longer one is refused. */
export const maxImageReferenceLength = 1_024;
/** Arguments of one command, and bytes of all of them (and, apart from these, of the environment). More is refused. */
export const maxArguments = 4_096;
export const maxArgumentBytes = 1024 * 1024;
/** Environment variables, and mounts, of one sandbox. More is refused. */
export const maxEnvVars = 1_024;
export const maxMounts = 64;
/** Rules of one policy, and ports, methods, paths or credentials of one rule. More is refused. */
export const maxPolicyRules = 256;
export const maxRuleEntries = 64;
/** Secrets of one sandbox, bytes of one and of all of them: they fit into one frame of the link. More is refused. */
export const maxSecrets = 64;
export const maxSecretBytes = 64 * 1024;
export const maxSecretsBytes = 256 * 1024;
/** A sandbox's setup: bytes of all that is in it, and of its script; files, clones, settings of git, lines of known hosts. More is refused. */
export const maxSetupBytes = 256 * 1024;
export const maxSetupScriptBytes = 64 * 1024;
export const maxSetupFiles = 100;
export const maxGitClones = 20;
export const maxGitConfig = 100;
export const maxKnownHosts = 100;

// The host link, between control plane and agent

/** One frame of the link, either way; a larger one ends the stream with RESOURCE_EXHAUSTED. Bytes. */
export const maxLinkFrameBytes = 4 * 1024 * 1024;
/** Commands of one host that are being carried out; one more is refused with queue-full (L-17). */
export const commandsPerHost = 512;
/** Certificates of one host that are being signed; one more is refused with queue-full. */
export const signingsPerHost = 256;
/** Connections of one host's sandboxes to the control plane; one more is closed. */
export const sandboxConnectionsPerHost = 1_024;
/** Events of a host that wait for its link, and that the control plane takes from one frame; the oldest are dropped and counted. */
export const hostEventsPerFrame = 1_024;
/** The largest --standbys. More are refused. */
export const maxStandbys = 256;

// The session, between control plane and init

/** One message between control plane and init, either way; a larger one ends the call with RESOURCE_EXHAUSTED. Bytes. */
export const maxSessionMessageBytes = 1024 * 1024;
/** Characters of the id of an exec. A longer one is refused. */
export const maxExecIdLength = 64;

// The API, between client and control plane

/** Input sent this short before a break may not have arrived: an exec without a terminal then fails instead of guessing. Milliseconds. */
export const inputSettledMs = 10_000;
